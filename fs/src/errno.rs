//! The only place where an error becomes an errno.

use std::io;

use karapace_store::error::StoreError;

use crate::error::Error;

impl Error {
    /// The errno for the caller of the file system.
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotFound => libc::ENOENT,
            Error::Exists => libc::EEXIST,
            Error::NotDirectory => libc::ENOTDIR,
            Error::IsDirectory => libc::EISDIR,
            Error::NotEmpty => libc::ENOTEMPTY,
            Error::Invalid(_) => libc::EINVAL,
            Error::NameTooLong => libc::ENAMETOOLONG,
            Error::ReadOnly => libc::EROFS,
            Error::NoData => libc::ENODATA,
            Error::Range => libc::ERANGE,
            Error::TooBig => libc::E2BIG,
            Error::NoSuchOffset => libc::ENXIO,
            Error::NotPermitted => libc::EPERM,
            Error::Access => libc::EACCES,
            Error::Busy => libc::EBUSY,
            Error::CrossDevice => libc::EXDEV,
            Error::TooManyLinks => libc::EMLINK,
            Error::NotSupported => libc::EOPNOTSUPP,
            Error::FileTooBig => libc::EFBIG,
            Error::Stale => libc::ESTALE,
            Error::NoSpace => libc::ENOSPC,
            Error::TryAgain => libc::EAGAIN,
            Error::Corrupt(_) | Error::Damaged(_) => libc::EIO,
            Error::Store(e) => store_errno(e),
            Error::Host { source, .. } => io_errno(source),
            Error::Io(e) => io_errno(e),
        }
    }
}

/// The errno for a store error.
pub fn store_errno(error: &StoreError) -> i32 {
    match error {
        StoreError::Io { source, .. } => io_errno(source),
        StoreError::Locked { .. } | StoreError::OtherHost { .. } => libc::EAGAIN,
        StoreError::Invalid(_) => libc::EINVAL,
        // To a process that reads a file, a missing or damaged object is a damaged disk.
        _ => libc::EIO,
    }
}

/// The errno for a failed call on the host: passed on if it means the same to the caller of the view.
fn io_errno(error: &io::Error) -> i32 {
    match error.raw_os_error() {
        Some(
            errno @ (libc::ENOSPC | libc::EDQUOT | libc::EFBIG | libc::EROFS | libc::ENOMEM | libc::EINTR),
        ) => errno,
        // Any other errno concerns a file of ours, not the one the caller asked for.
        _ => libc::EIO,
    }
}

/// The name of an errno, such as `EINVAL`; `EIO` for an unknown number.
pub fn errno_name(errno: i32) -> String {
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => "EIO".to_owned(),
        known => format!("{known:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn host_errors_are_told_only_where_they_mean_the_same() {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        assert_eq!(Error::Io(full).errno(), libc::ENOSPC);
        let quota = io::Error::from_raw_os_error(libc::EDQUOT);
        assert_eq!(Error::host("write", Path::new("x"), quota).errno(), libc::EDQUOT);
        let gone = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(Error::Io(gone).errno(), libc::EIO);
    }

    #[test]
    fn names_of_numbers() {
        assert_eq!(errno_name(libc::EINVAL), "EINVAL");
        assert_eq!(errno_name(-1), "EIO");
    }
}
