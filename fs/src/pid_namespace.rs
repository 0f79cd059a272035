//! Whether a process that asks lives in the process namespace of this one.
//!
//! A program inside a session has its user's ids as often as not, so an id says nothing; where it lives does.

use std::fs;
use std::sync::OnceLock;

/// Whether a process, by its number as the kernel tells it to this process, lives in this process's own
/// namespace and not in one below. Zero, which the kernel tells of processes that this one cannot see, does
/// not. The process must not end meanwhile.
pub fn is_ours(process: u32) -> bool {
    process != 0
        && fs::read_to_string(format!("/proc/{process}/status")).is_ok_and(|text| has_our_depth(&text))
}

/// The same from a text that has the line `NSpid:` (proc_pid_status(5)): its numbers are those that the
/// process has in each namespace, from that of /proc down to its own. A process that ended has none.
pub fn has_our_depth(text: &str) -> bool {
    static OWN: OnceLock<Option<usize>> = OnceLock::new();
    let own = OWN.get_or_init(|| depth(&fs::read_to_string("/proc/self/status").ok()?));
    own.is_some() && depth(text) == *own
}

fn depth(text: &str) -> Option<usize> {
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let mut numbers = numbers.split_ascii_whitespace().map(str::parse::<u32>);
    let count = numbers.clone().count();
    (count > 0 && numbers.all(|number| number.is_ok_and(|number| number > 0))).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ours() {
        assert!(is_ours(std::process::id()));
        assert!(!is_ours(0));
        assert!(!is_ours(u32::MAX));
        let own = fs::read_to_string("/proc/self/status").unwrap();
        assert!(has_our_depth(&own));
        let line = own.lines().find(|line| line.starts_with("NSpid:")).unwrap();
        for other in
            [format!("{line}\t1"), "NSpid:".into(), "NSpid:\t-1".into(), "NSpid:\t0".into(), String::new()]
        {
            assert!(!has_our_depth(&other), "{other}");
        }
    }
}
