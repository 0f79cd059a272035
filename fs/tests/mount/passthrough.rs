//! Mounts on which the kernel reads large files directly.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::mount::support::Mount;

const WHOLE: usize = 3 << 20;
const DAMAGED: usize = WHOLE + 4096;

/// The object with this many bytes.
fn object(mount: &Mount, size: usize) -> PathBuf {
    let buckets = fs::read_dir(mount.objects()).unwrap().map(|bucket| bucket.unwrap().path());
    let mut all = buckets.flat_map(|bucket| fs::read_dir(bucket).unwrap()).map(|file| file.unwrap().path());
    all.find(|path| fs::metadata(path).unwrap().len() == size as u64).expect("an object of this size")
}

fn errno(result: std::io::Result<usize>) -> Option<i32> {
    result.unwrap_err().raw_os_error()
}

/// A file that is one whole object is verified and then read without us; any other is served as usual.
/// Damaged parts are EIO, and intact parts are returned.
#[test]
fn the_kernel_reads_whole_objects_by_itself_once_they_are_verified() {
    let mount = Mount::new();
    let make = format!(
        "def bytes_of(n, k): return b''.join((i * k).to_bytes(8, 'little') for i in range(1, n // 8 + 1))\n\
         open('whole', 'wb').write(bytes_of({WHOLE}, 5))\n\
         open('damaged', 'wb').write(bytes_of({DAMAGED}, 7))\n\
         with open('holes', 'wb') as f: f.seek({WHOLE}); f.write(b'end')\n\
         open('small', 'wb').write(b'small')"
    );
    mount.ok("python3", &make);
    mount.commit();
    let damaged = object(&mount, DAMAGED);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[2 << 20] ^= 1;
    fs::remove_file(&damaged).unwrap();
    fs::write(&damaged, bytes).unwrap();

    let expected = fs::read(mount.path("whole")).unwrap();
    let again = mount.again(|options| {
        options.read_only = true;
        options.passthrough = true;
    });
    let path = |name: &str| again.dir.path().join(name);
    for _ in 0..2 {
        assert!(fs::read(path("whole")).unwrap() == expected);
        assert_eq!(fs::read(path("small")).unwrap(), b"small");
        let holes = fs::read(path("holes")).unwrap();
        assert!(holes.len() == WHOLE + 3 && holes.ends_with(b"\0end"));
    }
    let mut file = File::open(path("damaged")).unwrap();
    file.read_exact(&mut vec![0; 1 << 20]).unwrap();
    assert_eq!(errno(file.read_at(&mut [0; 4096], 2 << 20)), Some(libc::EIO));

    // Bytes missing from the object are the end of the file to the kernel; a request would have been answered
    // with EIO.
    let file = File::open(path("whole")).unwrap();
    let second = File::open(path("whole")).unwrap();
    let short = OpenOptions::new().write(true).open(object(&mount, WHOLE)).unwrap();
    short.set_len(1 << 20).unwrap();
    for file in [&file, &second] {
        assert_eq!(file.read_at(&mut [0; 4096], 2 << 20).unwrap(), 0);
        assert_eq!(file.read_at(&mut [0; 4096], 4096).unwrap(), 4096);
    }
}
