//! Strings in the form that processes inside need, and the addresses of karapace's own start strings.

use std::ffi::{CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStringExt;

use nix::errno::Errno;

use crate::runtime::RuntimeError;
use crate::runtime::error::failed;
use crate::runtime::inside::conceal::StartStrings;

impl StartStrings {
    /// The ranges of this process: arg_start, arg_end, env_start and env_end of proc_pid_stat(5).
    ///
    /// # Errors
    /// [`RuntimeError::Supervise`], if /proc/self/stat cannot be read or parsed.
    pub fn find() -> Result<StartStrings, RuntimeError> {
        let unknown = || failed("find the arguments of this process")(Errno::ENODATA);
        let stat = fs::read("/proc/self/stat").map_err(|_| unknown())?;
        // The second field, the name, may contain anything but ends with the last parenthesis; the third
        // field follows.
        let name = stat.iter().rposition(|byte| *byte == b')').ok_or_else(unknown)?;
        let rest = std::str::from_utf8(&stat[name + 1..]).map_err(|_| unknown())?;
        let mut fields = rest.split_ascii_whitespace().skip(48 - 3).map(str::parse::<u64>);
        let mut field = || fields.next().and_then(Result::ok).ok_or_else(unknown);
        Ok(StartStrings([field()?..field()?, field()?..field()?]))
    }
}

pub(super) fn c_strings(what: &'static str, strings: Vec<OsString>) -> Result<Vec<CString>, RuntimeError> {
    strings.into_iter().map(|s| c_string(what, s)).collect()
}

pub(super) fn c_string(what: &'static str, string: OsString) -> Result<CString, RuntimeError> {
    let printable = string.to_string_lossy().into_owned();
    CString::new(string.into_vec()).map_err(|_| RuntimeError::Invalid {
        what,
        value: printable,
        reason: "must not contain a NUL byte",
    })
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    #[test]
    fn the_strings_are_those_of_the_process() {
        let StartStrings([arguments, variables]) = StartStrings::find().unwrap();
        let read = |range: &Range<u64>| {
            let memory = fs::File::open("/proc/self/mem").unwrap();
            let mut bytes = vec![0; (range.end - range.start) as usize];
            std::os::unix::fs::FileExt::read_exact_at(&memory, &mut bytes, range.start).unwrap();
            bytes
        };
        assert_eq!(read(&arguments), fs::read("/proc/self/cmdline").unwrap());
        assert_eq!(read(&variables), fs::read("/proc/self/environ").unwrap());
    }
}
