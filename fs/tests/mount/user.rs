//! A mount by an ordinary user, through fusermount3.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use karapace_store::inode::ROOT_INO;

use crate::mount::support::Mount;
use crate::mount::surface;

/// `nobody`: fusermount3 requires a user listed in /etc/passwd.
const USER: u32 = 65534;

/// Runs `inside` as an ordinary user. /dev/fuse may be accessible only to root here, so the user gets an open
/// device node, in a separate mount namespace.
#[test]
fn ordinary_users_mount() {
    let dir =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().expect("directory");
    let test = dir.path().join("test");
    fs::copy(std::env::current_exe().expect("this test"), &test).expect("copy");
    let script = r#"
        set -e
        mknod "$1/fuse" c 10 229; chmod 666 "$1/fuse"; mount --bind "$1/fuse" /dev/fuse
        truncate -s 48M "$1/image"; mkfs.ext4 -q -m 0 -b 4096 "$1/image"; mkdir "$1/ext4"
        mount -o loop,nosuid,nodev "$1/image" "$1/ext4"; chown "$2" "$1/ext4"; export PLAIN="$1/ext4"
        cd /; umask 022
        exec setpriv --reuid "$2" --regid "$2" --clear-groups "$1/test" --ignored user::inside
    "#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(USER.to_string())
        .env("TMPDIR", "/tmp")
        .output()
        .expect("these tests need unshare");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("2 passed"), "{text}");
}

#[test]
#[ignore = "run by ordinary_users_mount, as a user"]
fn inside_a_users_mount() {
    let mount = Mount::new();
    let stat = |name: &str| fs::metadata(mount.path(name)).expect(name);
    let stored = |name: &str| {
        let attr = mount.view.lookup(ROOT_INO, name.as_bytes()).expect(name);
        mount.view.forget(attr.ino, 1);
        (attr.uid, attr.gid)
    };
    assert_eq!(
        (stat("base-file").uid(), stat("base-file").gid()),
        (USER, USER),
        "root's files show as the user's"
    );

    fs::write(mount.path("new"), "x").expect("write");
    assert_eq!(stored("new"), (0, 0), "the user makes root's files");
    fs::write(mount.path("base-file"), "changed").expect("write to a file of root's");
    fs::set_permissions(mount.path("new"), fs::Permissions::from_mode(0o000)).expect("chmod");
    assert_eq!(fs::read_to_string(mount.path("new")).expect("root reads everything"), "x");

    for (shown, kept) in [(33, 33), (USER, 0), (0, USER)] {
        chown(mount.path("new"), Some(shown), Some(shown)).expect("root chowns at will");
        assert_eq!((stat("new").uid(), stat("new").gid()), (shown, shown));
        assert_eq!(stored("new"), (kept, kept));
    }
    mount.ok("bash", "umask 027; touch u; [ $(stat -c %a u) = 640 ]; mkdir v; [ $(stat -c %a v) = 750 ]");

    mount.ok(
        "bash",
        "[ -r base-file ] && [ -w base-file ] && [ ! -x base-file ] && chmod 010 u && [ -x u ] && [ -x v ]",
    );

    assert_eq!(fs::metadata(mount.control("")).expect("control").uid(), USER);
    mount.ok("bash", "echo commit > .karapace/ctl && grep -q '^ok commit' .karapace/last");
    mount.ok("bash", "mkdir .karapace/snapshots/n && cmp .karapace/snapshots/n/base-file - <<<base");
    assert!(mount.fails("bash", "echo nonsense > .karapace/ctl").contains("Invalid argument"));
}

/// A user's mount compared with an ext4 of the same user.
#[test]
#[ignore = "run by ordinary_users_mount, as a user"]
fn inside_the_surface_is_the_same() {
    let plain = std::env::var_os("PLAIN").expect("where an ext4 is");
    let mount = Mount::new();
    for (name, script) in surface::SCRIPTS {
        surface::same(name, script, &mount.path(""), plain.as_ref(), "user");
    }
}
