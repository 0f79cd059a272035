//! Whether a process lives in this process's own process namespace.
//!
//! A program inside a session often has its user's ids, so ids do not distinguish it; its namespace does.

use std::fs;
use std::sync::OnceLock;

/// Whether a process lives in this process's namespace and not in one below. `process` is its number as the
/// kernel tells it to this process. False for 0, which the kernel uses for processes that this one cannot
/// see. The process must not end meanwhile.
pub fn is_ours(process: u32) -> bool {
    process != 0
        && fs::read_to_string(format!("/proc/{process}/status")).is_ok_and(|text| has_our_depth(&text))
}

/// Like [`is_ours`], from a text with the line `NSpid:` (proc_pid_status(5)), which lists the process's
/// numbers in each namespace from that of /proc down to its own. The line has no numbers if the process has
/// ended.
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
    fn processes_of_this_namespace_are_ours() {
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
