//! Room for walks that follow a tree downwards by calling themselves.

use std::io;
use std::thread::Builder;

/// Address space for the stack, of which only what is used takes memory: enough for directories some hundred
/// thousand deep, where the stack of an ordinary thread ends at a few thousand, which any process in an
/// environment can make.
const STACK: usize = 512 << 20;

/// Runs `walk` on a thread with a large stack and waits for it. The caller holds no lock that `walk` takes.
///
/// # Errors
/// When no thread can be started; `walk` was not run then.
pub fn deep<T: Send>(walk: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = Builder::new().name("karapace-walk".to_owned()).stack_size(STACK);
        let walking = thread.spawn_scoped(scope, walk)?;
        Ok(walking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
