//! Whether a thread that waits in the kernel has a signal to handle.

use std::fs;

/// Whether the thread with this number has a signal that interrupts what it waits for. False if that is not
/// known: a call that is interrupted without a signal returns an error that no program knows.
pub(super) fn interrupts(thread: u32) -> bool {
    fs::read_to_string(format!("/proc/{thread}/status")).is_ok_and(|text| tells_of_a_signal(&text))
}

/// Reads proc_pid_status(5). A signal for the whole process is handled by its first thread unless that blocks
/// it; which other thread would handle it is not shown. One that ends the process is shown as SIGKILL for
/// each thread.
fn tells_of_a_signal(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let set = |name| field(name).and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let (Some(own), Some(blocked)) = (set("SigPnd:"), set("SigBlk:")) else { return false };
    let is_first = field("Tgid:").is_some() && field("Tgid:") == field("Pid:");
    let of_process = if is_first { set("ShdPnd:").unwrap_or(0) } else { 0 };
    (own | of_process) & !blocked != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pid: u32, pending: &str, shared: &str, blocked: &str) -> String {
        format!(
            "Name:\tx\nTgid:\t7\nNgid:\t0\nPid:\t{pid}\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\n"
        )
    }

    #[test]
    fn signals_that_the_thread_handles() {
        let (none, alarm) = ("0000000000000000", "0000000000002000");
        assert!(!tells_of_a_signal(&status(7, none, none, none)));
        assert!(tells_of_a_signal(&status(7, alarm, none, none)));
        assert!(tells_of_a_signal(&status(7, none, alarm, none)));
        assert!(!tells_of_a_signal(&status(7, alarm, alarm, alarm)));
        assert!(tells_of_a_signal(&status(8, "0000000000000100", none, alarm)));
        assert!(!tells_of_a_signal(&status(8, none, alarm, none)), "the first thread's");
        assert!(!tells_of_a_signal(""));
        assert!(!interrupts(std::process::id()) && !interrupts(u32::MAX));
    }
}
