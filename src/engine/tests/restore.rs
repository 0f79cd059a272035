//! Restore while programs write continuously.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Stops the writers on drop, also if the test fails.
struct Enough<'a>(&'a AtomicBool);

impl Drop for Enough<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs `work` while two threads make and remove files without a pause.
fn beside_writers(instance: &Instance, work: impl FnOnce()) {
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in [b"own.1", b"own.2"] {
            let (view, enough) = (instance.view(), &enough);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    // A whole restore also removes the file.
                    if let Ok(attr) = view.mknod(&ROOT, ROOT_INO, writer, libc::S_IFREG | 0o644, 0) {
                        view.forget(attr.ino, 1);
                    }
                    let _gone = view.unlink(ROOT_INO, writer);
                }
            });
        }
        let _enough = Enough(&enough);
        work();
    });
}

#[test]
fn restore_ends_beside_programs_that_write_all_the_time() {
    let place = Place::new();
    let env = place.import("dev");
    let instance = place.open(&env);
    write(instance.view(), "a", "1");
    let one = commit(&instance, None).to_hex();
    write(instance.view(), "a", "2");
    let two = commit(&instance, None).to_hex();
    beside_writers(&instance, || {
        for (hash, text) in [(&one, "1"), (&two, "2"), (&one, "1")] {
            for paths in [&[][..], &[b"/a".to_vec()]] {
                instance.restore(hash, paths, None, Wait::Long).unwrap();
                assert_eq!(read(instance.view(), "a").as_deref(), Some(text));
            }
        }
    });
}
