//! The connection: what the kernel offers at INIT, and how a mount behaves whose server died.

use std::fs;

use fuser::InitFlags;

use crate::kernel::harness::{Mounted, karapace_flags};
use crate::kernel::toy::{Op, Toy};

/// The kernel offers every flag that Karapace requests: a missing one fails the mount with its name.
#[test]
fn the_kernel_offers_what_karapace_asks() {
    let mounted = Mounted::new();
    assert!(mounted.path("").exists());
    drop(mounted);
    let locks = InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS;
    let flags = karapace_flags().difference(InitFlags::FUSE_NO_OPEN_SUPPORT) | locks;
    let mounted = Mounted::serve(Toy::new(flags), "user_id=0,group_id=0,allow_other,default_permissions");
    assert!(mounted.path("").exists());
}

/// A mount without a server stays mounted and returns ENOTCONN, which is how a stale mount point is
/// recognized. It can still be unmounted.
#[test]
fn a_dead_servers_mount_answers_enotconn() {
    let mut mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    let open = fs::File::open(mounted.path("f")).unwrap();
    mounted.kill_server();
    assert_eq!(fs::metadata(mounted.path("f")).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    assert_eq!(fs::read_dir(mounted.path("")).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    drop(open);
    mounted.unmount();
    assert_eq!(fs::read_dir(mounted.path("")).unwrap().count(), 0);
}

/// Unmounting ends the server's loop, and `wait` returns.
#[test]
fn unmounting_ends_the_session() {
    let mut mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    assert_eq!(fs::read(mounted.path("f")).unwrap(), b"text");
    mounted.unmount();
    mounted.join().unwrap();
    assert_eq!(mounted.toy.count(Op::Read), 1);
}

/// Unmounting a mount in use fails instead of removing the tree under its user.
#[test]
fn a_mount_in_use_is_busy() {
    let mounted = Mounted::new();
    mounted.toy.file("f", b"text");
    let open = fs::File::open(mounted.path("f")).unwrap();
    assert_eq!(nix::mount::umount(&mounted.path("")), Err(nix::errno::Errno::EBUSY));
    drop(open);
    nix::mount::umount(&mounted.path("")).unwrap();
}
