//! A mount by an ordinary user, through fusermount3.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use karapace_fs::session::SubIds;
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
    assert!(output.status.success() && text.contains("3 passed"), "{text}");
}

/// The ids of a file in the root directory, as the view has them.
fn stored(mount: &Mount, name: &str) -> (u32, u32) {
    let attr = mount.view.lookup(ROOT_INO, name.as_bytes()).expect(name);
    mount.view.forget(attr.ino, 1);
    (attr.uid, attr.gid)
}

#[test]
#[ignore = "run by ordinary_users_mount, as a user"]
fn inside_a_users_mount() {
    let mount = Mount::new();
    let stat = |name: &str| fs::metadata(mount.path(name)).expect(name);
    let stored = |name: &str| stored(&mount, name);
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

    for (set, shown, kept) in [(33, 33, 33), (USER, USER, 0), (33, 33, 33), (0, USER, 0)] {
        chown(mount.path("new"), Some(set), Some(set)).expect("root chowns at will");
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

#[test]
#[ignore = "run by ordinary_users_mount, as a user"]
fn inside_sub_ids_show() {
    let sub_ids = SubIds { uids: vec![(200_000, 50), (300_000, 1000)], gids: vec![(400_000, 100)] };
    let mount = Mount::with(|options| options.sub_ids = Some(sub_ids));
    let ids = |name: &str| {
        let attr = fs::metadata(mount.path(name)).expect(name);
        (attr.uid(), attr.gid())
    };
    assert_eq!(ids("base-file"), (USER, USER), "root's files show as the user's");
    fs::write(mount.path("new"), "x").expect("write");
    assert_eq!(stored(&mount, "new"), (0, 0), "the user makes root's files");
    for (set, shown, kept) in [
        (33, (200_032, 400_032), (33, 33)),
        (0, (USER, USER), (0, 0)),
        (60, (300_009, 400_059), (60, 60)),
        (USER, (USER, USER), (0, 0)),
        // Of these, only one is a sub-id.
        (200_032, (200_032, 65_534), (33, 200_032)),
        (400_032, (65_534, 400_032), (400_032, 33)),
        (1050, (300_999, 65_534), (1050, 1050)),
        (1051, (65_534, 65_534), (1051, 1051)),
    ] {
        chown(mount.path("new"), Some(set), Some(set)).expect("root chowns at will");
        assert_eq!((ids("new"), stored(&mount, "new")), (shown, kept), "{set} is set");
    }
    chown(mount.path("new"), Some(0), None).expect("chown");
    assert_eq!(stored(&mount, "new"), (0, 1051), "-1 sets nothing");
    chown(mount.path("new"), None, Some(0)).expect("chgrp");
    mount.ok("bash", "setfacl -m u:0:r,u:200004:rw,g:400004:r,u:7:x new");
    let shown = mount.ok("bash", "getfacl -cn new");
    for entry in [&format!("user:{USER}:r--"), "user:200004:rw-", "group:400004:r--", "user:200006:--x"] {
        assert!(shown.lines().any(|line| line.starts_with(entry)), "{entry}: {shown}");
    }
    fs::create_dir(mount.path("theirs")).expect("mkdir");
    chown(mount.path("theirs"), Some(200_032), Some(400_032)).expect("chown");
    fs::write(mount.path("theirs/file"), "x").expect("root writes everywhere");
    assert_eq!(ids("theirs/file"), (USER, USER), "made by the user");
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
