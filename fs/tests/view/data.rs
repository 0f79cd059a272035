//! File content.

use karapace_store::content::BLOCK;
use karapace_store::inode::ROOT_INO;

use crate::view::support::{Env, pattern};
use karapace_fs::attr::SetAttr;

#[test]
fn a_damaged_object_is_an_error_and_the_rest_still_works() {
    let mut env = Env::new();
    env.file("small", b"just a few bytes");
    env.file("large", &pattern(3 << 20, 5));
    env.file("fine", b"nothing wrong here");
    env.commit();
    env.reopen();
    let objects = env.dir.path().join("store/store/objects");
    for bucket in std::fs::read_dir(objects).unwrap() {
        for object in std::fs::read_dir(bucket.unwrap().path()).unwrap() {
            let path = object.unwrap().path();
            let mut bytes = std::fs::read(&path).unwrap();
            let at = match bytes.len() {
                16 => 3,
                n if n == 3 << 20 => (2 << 20) + 7,
                _ => continue,
            };
            bytes[at] ^= 1;
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let ino = |name: &[u8]| env.view.lookup(ROOT_INO, name).unwrap().ino;
    let mut buf = Vec::new();
    let errno = |r: Result<(), karapace_fs::Error>| r.unwrap_err().errno();
    assert_eq!(errno(env.view.read(ino(b"small"), 0, 100, &mut buf)), libc::EIO);
    env.view.read(ino(b"large"), 0, 1 << 20, &mut buf).unwrap();
    assert_eq!(buf, pattern(3 << 20, 5)[..1 << 20], "blocks that are whole are given out");
    assert_eq!(errno(env.view.read(ino(b"large"), 2 << 20, 4096, &mut buf)), libc::EIO);
    assert_eq!(env.read(ino(b"fine")), b"nothing wrong here");
}

/// Length, offset and distance of holes: multiples of pages, of the store's blocks, and of neither.
#[test]
fn holes_outlive_commits_and_writes_elsewhere() {
    let size = 14 << 20;
    for (length, offset, step) in
        [(4096, 0, 69632), (32768, 0, 69632), (49152, 4096, 69632), (61440, 8192, 69632), (65536, 0, 131072)]
    {
        let mut env = Env::new();
        let ino = env.file("holes", &pattern(size, 3));
        let mut expected = pattern(size, 3);
        let mut holes = Vec::new();
        for at in (offset..size - length).step_by(step) {
            let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            env.view.fallocate(ino, punch, at as u64, length as u64).unwrap();
            expected[at..at + length].fill(0);
            holes.push((at as u64, length as u64));
        }
        let seen = |env: &Env, ino| {
            let (mut holes, mut at) = (Vec::new(), 0);
            while let Ok(hole) = env.view.lseek(ino, at, libc::SEEK_HOLE) {
                at = env.view.lseek(ino, hole, libc::SEEK_DATA).unwrap_or(size as u64);
                if at > hole {
                    holes.push((hole, at - hole));
                }
            }
            holes
        };
        let blocks = |env: &Env, ino| env.view.getattr(ino).unwrap().blocks;
        let occupied = blocks(&env, ino);
        assert!(seen(&env, ino) == holes, "{length}: new");
        env.commit();
        env.reopen();
        let ino = env.view.lookup(ROOT_INO, b"holes").unwrap().ino;
        assert!(seen(&env, ino) == holes && blocks(&env, ino) <= occupied, "{length}: committed");

        env.view.write(ino, 7_000_000, b"x", false).unwrap();
        expected[7_000_000] = b'x';
        holes.retain(|(at, length)| {
            (at + length) / BLOCK < 7_000_000 / BLOCK || *at / BLOCK > 7_000_000 / BLOCK
        });
        for when in ["written", "committed again", "opened again"] {
            let kept: Vec<_> = seen(&env, ino).into_iter().filter(|hole| holes.contains(hole)).collect();
            assert!(kept == holes && blocks(&env, ino) <= occupied + 256, "{length}: {when}");
            assert!(env.read(ino) == expected, "{length}: {when}");
            match when {
                "written" => drop(env.commit()),
                _ => env.reopen(),
            }
            let again = env.view.lookup(ROOT_INO, b"holes").unwrap().ino;
            assert_eq!(again, ino);
        }

        env.view.write(ino, 7_000_000, b"y", false).unwrap();
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        let before = blocks(&env, ino);
        env.view.fallocate(ino, punch, 3_000_000, 300_000).unwrap();
        // The blocks in which the range begins and ends are entirely in the upper from here on.
        let data = env.view.lseek(ino, 3_080_192, libc::SEEK_DATA).unwrap();
        assert!(data >= 3_276_800 && blocks(&env, ino) <= before + 256, "{length}: {data}");
    }
}

#[test]
fn a_write_into_a_large_lower_file_brings_up_one_block() {
    let mut env = Env::new();
    env.file("big", &pattern(8 << 20, 9));
    env.commit();
    env.reopen();
    let ino = env.view.lookup(ROOT_INO, b"big").unwrap().ino;
    env.view.write(ino, 5_000_000, b"x", false).unwrap();
    assert_eq!(env.view.stats().dirty_bytes, 64 << 10);
    let mut expected = pattern(8 << 20, 9);
    expected[5_000_000] = b'x';
    assert!(env.read(ino) == expected);
    env.reopen();
    let ino = env.view.lookup(ROOT_INO, b"big").unwrap().ino;
    assert!(env.read(ino) == expected);
}

/// Copying programs recognize a sparse file by its number of blocks.
#[test]
fn a_file_that_is_one_hole_occupies_nothing() {
    let mut env = Env::new();
    let ino = env.file("hole", b"");
    env.view.setattr(ino, &SetAttr { size: Some(3 << 20), ..SetAttr::default() }).unwrap();
    let occupied = |env: &Env| env.view.getattr(ino).unwrap().blocks;
    assert_eq!(occupied(&env), 0);
    env.commit();
    assert_eq!(occupied(&env), 0);
    env.view.write(ino, 1 << 20, b"x", false).unwrap();
    assert!((1..=128).contains(&occupied(&env)), "{}", occupied(&env));
}

/// `du` reports the same for a tree as on ext4, and a commit does not change that.
#[test]
fn what_a_small_file_occupies_outlives_a_commit() {
    let mut env = Env::new();
    let sizes = [(0, 0), (1, 8), (5000, 16), (1 << 20, 2048), ((1 << 20) + 1, 2056)];
    for (size, _) in sizes {
        env.file(&size.to_string(), &pattern(size, 3));
    }
    for when in ["new", "committed", "opened again"] {
        for (size, blocks) in sizes {
            let ino = env.view.lookup(ROOT_INO, size.to_string().as_bytes()).unwrap().ino;
            assert_eq!(env.view.getattr(ino).unwrap().blocks, blocks, "{size} bytes, {when}");
        }
        match when {
            "new" => drop(env.commit()),
            _ => env.reopen(),
        }
    }
}

#[test]
fn holes_and_data_are_found() {
    let mut env = Env::new();
    let ino = env.file("sparse", b"");
    env.view.write(ino, 4 << 20, &pattern(100_000, 1), false).unwrap();
    let ask = |env: &Env| {
        let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
        let start = env.view.lseek(ino, 0, data).unwrap();
        (env.view.lseek(ino, 0, hole).unwrap(), start, env.view.lseek(ino, start, hole).unwrap())
    };
    let end = (4 << 20) + 100_000;
    assert_eq!(ask(&env), (0, 4 << 20, end));
    env.commit();
    assert_eq!(ask(&env), (0, 4 << 20, end));
    assert_eq!(env.view.lseek(ino, end, libc::SEEK_DATA).unwrap_err().errno(), libc::ENXIO);
}

/// If the host cannot read a file, only that file returns EIO.
#[test]
fn a_missing_data_file_is_an_error_and_the_rest_still_works() {
    let mut env = Env::new();
    let (lost, fine) = (env.file("lost", b"text"), env.file("fine", b"text"));
    env.view.close().unwrap();
    env.reopen();
    let data = env.dir.path().join(format!("store/upper/data/{:02x}/{lost:x}", lost & 0xff));
    std::fs::remove_file(data).unwrap();
    let mut buf = Vec::new();
    assert_eq!(env.view.read(lost, 0, 10, &mut buf).unwrap_err().errno(), libc::EIO);
    assert_eq!(env.view.write(lost, 0, b"x", false).unwrap_err().errno(), libc::EIO);
    assert_eq!(env.read(fine), b"text");
    env.view.write(fine, 4, b" more", false).unwrap();
    assert_eq!(env.read(fine), b"text more");
    env.view.unlink(ROOT_INO, b"lost").unwrap();
}
