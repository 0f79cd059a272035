//! A large stack for recursive walks of a tree.

use std::io;
use std::thread::Builder;

/// Stack size in bytes. Only the pages that are touched use memory. It is enough for directories some hundred
/// thousand levels deep; an ordinary thread's stack ends at a few thousand, and any process in an environment
/// can make a deeper tree.
const STACK: usize = 512 << 20;

/// Runs `walk` on a thread with a large stack and waits for it. The caller must hold no lock that it takes.
///
/// # Errors
/// When the thread cannot be started; then `walk` was not run.
pub fn deep<T: Send>(walk: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = Builder::new().name("karapace-walk".to_owned()).stack_size(STACK);
        let walking = thread.spawn_scoped(scope, walk)?;
        Ok(walking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
