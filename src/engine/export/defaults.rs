//! The defaults of an exported image, read from its tree: its architecture and the shell that it starts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use karapace_store::error::Result;
use karapace_store::root::Root;
use karapace_store::tree::{StoredTree, Trees};

use crate::engine::instance::stored::{content, follow, read_up_to};
use crate::oci::Defaults;
use crate::runtime;

/// Largest /etc/passwd that is read, in bytes.
const MAX_PASSWD: u64 = 1 << 20;

/// How many bytes of an ELF file are read.
const ELF_HEAD: usize = 20;

/// The defaults of an image with this tree. It starts root's login shell, as `enter` would, or /bin/sh if the
/// tree does not have that shell. The architecture is the shell's, so that it does not depend on the
/// exporting machine.
pub(super) fn of(trees: &Trees, root: &Root) -> Result<Defaults> {
    let tree = StoredTree::new(trees, root);
    let passwd = match content(&follow(&tree, b"/etc/passwd")?) {
        Some(passwd) => read_up_to(trees, passwd, passwd.size.min(MAX_PASSWD))?,
        None => Vec::new(),
    };
    let login = runtime::root_shell(&passwd);
    let shells = [login.as_deref(), Some(OsStr::new(runtime::SHELL))];
    for shell in shells.into_iter().flatten() {
        let found = follow(&tree, shell.as_bytes())?;
        let is_program = found.as_ref().is_some_and(|record| record.mode & 0o111 != 0);
        if let (true, Some(content), Some(command)) = (is_program, content(&found), shell.to_str()) {
            let head = read_up_to(trees, content, ELF_HEAD as u64)?;
            return Ok(defaults(command, architecture(&head)));
        }
    }
    Ok(defaults(runtime::SHELL, None))
}

fn defaults(command: &str, architecture: Option<&str>) -> Defaults {
    Defaults {
        architecture: architecture.unwrap_or(host_architecture()).to_owned(),
        command: command.to_owned(),
        path: runtime::PATH.to_owned(),
    }
}

/// The architecture of an ELF file (`e_machine`, at byte 18, in the file's byte order) by its Go name, which
/// OCI uses.
fn architecture(head: &[u8]) -> Option<&'static str> {
    if head.len() < ELF_HEAD || !head.starts_with(b"\x7fELF") {
        return None;
    }
    let little = head[5] == 1;
    let machine = [head[18], head[19]];
    let machine = if little { u16::from_le_bytes(machine) } else { u16::from_be_bytes(machine) };
    Some(match machine {
        3 => "386",
        21 if little => "ppc64le",
        21 => "ppc64",
        22 => "s390x",
        40 => "arm",
        62 => "amd64",
        183 => "arm64",
        243 => "riscv64",
        258 => "loong64",
        _ => return None,
    })
}

/// This machine's architecture, for trees that do not show theirs.
fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use karapace_store::Store;
    use karapace_store::import::import_path;
    use karapace_store::progress::NoProgress;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    fn elf(order: u8, machine: u16) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02".to_vec();
        bytes.push(order);
        bytes.resize(18, 0);
        bytes.extend_from_slice(&if order == 1 { machine.to_le_bytes() } else { machine.to_be_bytes() });
        bytes
    }

    #[test]
    fn architectures() {
        assert_eq!(architecture(&elf(1, 62)), Some("amd64"));
        assert_eq!(architecture(&elf(1, 183)), Some("arm64"));
        assert_eq!(architecture(&elf(2, 22)), Some("s390x"));
        assert_eq!(architecture(&elf(1, 9999)), None);
        assert_eq!(architecture(b"#!/bin/sh\nexec something"), None);
        assert_eq!(architecture(b"\x7fELF"), None);
    }

    /// The defaults of a tree that `make` fills.
    fn of_tree(make: &dyn Fn(&Path)) -> Defaults {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join("tree");
        fs::create_dir(&source).unwrap();
        make(&source);
        let store = Store::open(&place.path().join("store")).unwrap();
        let trees = Trees::new(store.clone());
        let root = import_path(&store, &source, &NoProgress).unwrap().root;
        of(&trees, &trees.root(&root).unwrap()).unwrap()
    }

    fn program(path: &Path, machine: u16) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, elf(1, machine)).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn the_shell_is_roots_where_the_tree_has_it() {
        let passwd = b"root:x:0:0:root:/root:/bin/zsh\n";
        let both = of_tree(&|dir| {
            program(&dir.join("usr/bin/zsh5"), 183);
            program(&dir.join("usr/bin/dash"), 62);
            symlink("usr/bin", dir.join("bin")).unwrap();
            symlink("/bin/zsh5", dir.join("usr/bin/zsh")).unwrap();
            symlink("dash", dir.join("usr/bin/sh")).unwrap();
            fs::create_dir(dir.join("etc")).unwrap();
            fs::write(dir.join("etc/passwd"), passwd).unwrap();
        });
        assert_eq!((both.command.as_str(), both.architecture.as_str()), ("/bin/zsh", "arm64"));
        let without = of_tree(&|dir| {
            program(&dir.join("bin/sh"), 22);
            fs::create_dir(dir.join("etc")).unwrap();
            fs::write(dir.join("etc/passwd"), passwd).unwrap();
        });
        assert_eq!((without.command.as_str(), without.architecture.as_str()), ("/bin/sh", "s390x"));
        let bare = of_tree(&|dir| symlink("sh", dir.join("sh")).unwrap());
        assert_eq!((bare.command.as_str(), bare.architecture.as_str()), ("/bin/sh", host_architecture()));
    }
}
