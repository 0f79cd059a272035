//! Who may enter a mount, which ids requests carry, and who checks permissions.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::kernel::harness::{
    Mounted, NOBODY, child_argument, child_of, karapace_flags, own_namespace, set_mode,
};
use crate::kernel::sys;
use crate::kernel::toy::{Op, Toy};

/// Mount options of an ordinary user's mount: no default_permissions, no allow_other.
fn as_user() -> Mounted {
    Mounted::with(&format!("user_id={NOBODY},group_id={NOBODY}"))
}

/// default_permissions: the kernel checks modes and owners without asking the server.
#[test]
fn the_kernel_checks_permissions() {
    let mounted = Mounted::new();
    mounted.toy.file("secret", b"text");
    fs::set_permissions(mounted.path("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    mounted.toy.clear();
    assert!(!mounted.shell_as(NOBODY, "cat secret").status.success());
    assert_eq!(mounted.toy.count(Op::Read), 0);
    assert_eq!(mounted.toy.count(Op::Access), 0);
}

/// A user's mount: only that user may enter, not even root.
#[test]
fn only_the_owner_enters_a_users_mount() {
    let mounted = as_user();
    mounted.toy.file("f", b"text");
    assert_eq!(mounted.shell_as(NOBODY, "cat f").stdout, b"text");
    assert_eq!(fs::metadata(mounted.path("f")).unwrap_err().raw_os_error(), Some(libc::EACCES));
    assert!(!mounted.shell_as(NOBODY - 1, "cat f").status.success());
}

/// Without default_permissions the server decides: modes and owners do not stop the user, and chown to any id
/// arrives.
#[test]
fn a_users_mount_leaves_permissions_to_the_server() {
    let mounted = as_user();
    let ino = mounted.toy.file("f", b"text");
    mounted.toy.lock().node(ino).perm = 0o000;
    let output = mounted.shell_as(NOBODY, "echo more >> f && chown 12:34 f && mkdir d && rmdir d");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(mounted.toy.lock().node(ino).uid, 12);
    assert!(mounted.toy.seen(Op::SetAttr).iter().all(|seen| seen.uid == NOBODY));
}

/// `enter` as an ordinary user: root of a user namespace with one mapped id has the owner's kuid and is let
/// in. The server sees the owner's outside id, and files it shows as the owner's belong to root inside.
#[test]
fn root_of_the_owners_namespace_enters() {
    let mounted = as_user();
    let ino = mounted.toy.file("f", b"text");
    mounted.toy.lock().node(ino).uid = NOBODY;
    mounted.toy.lock().node(1).uid = NOBODY;
    let output = mounted
        .shell_as(NOBODY, "unshare --user --map-root-user sh -c 'id -u; stat -c %u f; cat f; mkdir d'");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n0\ntext", "{output:?}");
    assert_eq!(mounted.toy.seen(Op::MkDir)[0].uid, NOBODY);
}

/// Device nodes need CAP_MKNOD in the initial user namespace: refused before the server is asked.
#[test]
fn device_nodes_are_refused_by_the_kernel() {
    let mounted = as_user();
    assert!(!mounted.shell_as(NOBODY, "mknod null c 1 3").status.success());
    let inside = "unshare --user --map-root-user mknod null c 1 3";
    assert!(!mounted.shell_as(NOBODY, inside).status.success());
    assert_eq!(mounted.toy.count(Op::MkNod), 0);
}

/// FUSE_ALLOW_IDMAP: an id-mapped mount is possible. Requests that create something carry the ids that the
/// server should store; all other requests, through either mount, carry none.
#[test]
fn an_id_mapped_mount_sends_ids_with_creates_only() {
    let plain = Mounted::new();
    let target = plain.path("").parent().unwrap().join("shifted");
    fs::create_dir(&target).unwrap();
    let mut holder = std::process::Command::new("unshare");
    holder.args(["--user", "sh", "-c", "echo; exec sleep 60"]).stdout(std::process::Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let map = |kind: &str| fs::write(format!("/proc/{}/{kind}_map", holder.id()), "0 100000 65536\n");
    map("uid").and(map("gid")).unwrap();
    let refused = sys::mount_id_mapped(&plain.path(""), &target, holder.id()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EINVAL), "without the flag");
    drop(plain);

    let toy = Toy::new(karapace_flags() | fuser::InitFlags::FUSE_ALLOW_IDMAP);
    let mounted = Mounted::serve(toy, "user_id=0,group_id=0,allow_other,default_permissions");
    let target = mounted.path("").parent().unwrap().join("shifted");
    fs::create_dir(&target).unwrap();
    set_mode(&mounted.path(""), 0o777);
    let file = mounted.toy.file("f", b"text");
    mounted.toy.lock().node(file).uid = 7;
    sys::mount_id_mapped(&mounted.path(""), &target, holder.id()).unwrap();
    assert_eq!(fs::metadata(target.join("f")).unwrap().uid(), 100_007);
    mounted.toy.clear();
    let script = format!("cd {} && mkdir d && chmod 700 d && rmdir d && cat f", target.display());
    assert!(mounted.shell_as(100_033, &script).status.success());
    fs::set_permissions(mounted.path("f"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(mounted.toy.seen(Op::MkDir)[0].uid, 33);
    let others: Vec<_> =
        mounted.toy.all().into_iter().filter(|seen| !matches!(seen.op, Op::MkDir | Op::Forget)).collect();
    assert!(others.iter().any(|seen| seen.op == Op::SetAttr), "{others:?}");
    assert!(others.iter().all(|seen| seen.uid == u32::MAX), "{others:?}");
    holder.kill().and_then(|()| holder.wait()).unwrap();
    nix::mount::umount(&target).unwrap();
}

/// A mount made inside a user namespace with a range of ids: allow_other and default_permissions are allowed
/// there, chown works, and requests carry the ids inside.
#[test]
fn a_mount_inside_a_namespace_uses_its_ids() {
    own_namespace();
    let home = tempfile::tempdir().unwrap();
    set_mode(home.path(), 0o755);
    // The namespace's root must be able to open a device node, whatever the machine's own mode is, and to run
    // this program, wherever it was built.
    let devices = home.path().join("dev");
    fs::create_dir(&devices).unwrap();
    mount(Some("tmpfs"), &devices, Some("tmpfs"), MsFlags::empty(), Some("size=64k,mode=755")).unwrap();
    let device = devices.join("fuse");
    mknod(&device, SFlag::S_IFCHR, Mode::empty(), makedev(10, 229)).unwrap();
    set_mode(&device, 0o666);
    let program = home.path().join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();

    // Another test's fork may hold the copy open for writing until its exec.
    let mut tries = 0;
    let output = loop {
        let mut command = child_of(&program, "kernel::callers::child_in_namespace", home.path().as_os_str());
        command.env("KERNEL_TEST_DEVICE", &device);
        match sys::output_in_user_namespace(command, "0 100000 65536\n") {
            Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < 200 => {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            other => break other.unwrap(),
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "run by a_mount_inside_a_namespace_uses_its_ids"]
fn child_in_namespace() {
    assert!(child_argument().is_dir());
    let mounted = Mounted::new();
    let ino = mounted.toy.file("f", b"text");
    mounted.toy.lock().node(ino).uid = 5;
    assert_eq!(fs::metadata(mounted.path("f")).unwrap().uid(), 5);
    std::os::unix::fs::chown(mounted.path("f"), Some(1234), Some(0)).unwrap();
    assert_eq!(mounted.toy.seen(Op::SetAttr)[0].set.1, Some(1234));
    assert_eq!(fs::metadata(mounted.path("f")).unwrap().uid(), 1234);
    assert_eq!(mounted.shell_as(1000, "cat f").stdout, b"text");
    set_mode(&mounted.path(""), 0o777);
    assert!(mounted.shell_as(1000, "mkdir d").status.success());
    assert_eq!(mounted.toy.seen(Op::MkDir)[0].uid, 1000);
    set_mode(&mounted.path("f"), 0o600);
    assert!(!mounted.shell_as(1000, "cat f").status.success(), "default_permissions holds in there");
}
