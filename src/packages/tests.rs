//! Detection, command lines and answers of each manager. The answers of apt and dpkg follow what they were seen to say; of the others
//! they are written after their manuals.

use super::*;

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn lines(commands: &[Argv]) -> Vec<String> {
    commands.iter().map(|argv| argv.join(" ")).collect()
}

#[test]
fn detection() {
    let table: &[(&str, &[&str], Option<Manager>)] = &[
        ("ID=debian\n", &["/usr/bin/apt-get"], Some(Manager::Apt)),
        ("ID=ubuntu\nID_LIKE=debian\n", &["/usr/bin/apt-get"], Some(Manager::Apt)),
        ("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", &["/usr/bin/apt-get"], Some(Manager::Apt)),
        ("ID=fedora\n", &["/usr/bin/dnf"], Some(Manager::Dnf)),
        ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", &["/usr/bin/dnf"], Some(Manager::Dnf)),
        (
            "ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\n",
            &["/usr/bin/zypper"],
            Some(Manager::Zypper),
        ),
        ("ID=arch\n", &["/usr/bin/pacman"], Some(Manager::Pacman)),
        ("ID=manjaro\nID_LIKE=arch\n", &["/usr/bin/pacman"], Some(Manager::Pacman)),
        ("ID='alpine'\n", &["/sbin/apk"], Some(Manager::Apk)),
        ("ID=\"void\"\n", &["/usr/bin/xbps-install"], Some(Manager::Xbps)),
        // Another distribution's manager may be installed beside the own one.
        ("ID=debian\n", &["/usr/bin/dnf", "/usr/bin/apt-get"], Some(Manager::Apt)),
        ("ID=fedora\n", &["/usr/bin/dnf", "/usr/bin/apt-get"], Some(Manager::Dnf)),
        // An unknown or absent os-release: what is there.
        ("ID=somewhere\n", &["/usr/bin/pacman"], Some(Manager::Pacman)),
        ("", &["/sbin/apk"], Some(Manager::Apk)),
        // Named, but its program is not there.
        ("ID=debian\n", &[], None),
        ("VERSION_ID=12\n", &[], None),
    ];
    for (os_release, programs, expected) in table {
        let found = Manager::detect(os_release, |path| programs.contains(&path));
        assert_eq!(found, *expected, "{os_release:?} {programs:?}");
    }
}

#[test]
fn command_lines() {
    let wanted = [
        Wanted { name: "git".into(), version: Some("1:2-3".into()) },
        Wanted { name: "vim".into(), version: None },
    ];
    let table: &[(Manager, &[&str])] = &[
        (Manager::Apt, &["apt-get -q -y --no-install-recommends --allow-downgrades install git=1:2-3 vim"]),
        (Manager::Dnf, &["dnf -y --setopt=install_weak_deps=False install git-1:2-3 vim"]),
        (Manager::Zypper, &["zypper --non-interactive install --no-recommends --oldpackage git=1:2-3 vim"]),
        (Manager::Pacman, &["pacman -Su --noconfirm --needed git vim"]),
        (Manager::Apk, &["apk add git=1:2-3 vim", "apk add --no-network git vim"]),
        (Manager::Xbps, &["xbps-install -y git-1:2-3 vim"]),
    ];
    for (manager, install) in table {
        assert_eq!(lines(&manager.install(&wanted)), *install);
        // The program that was looked for is the one that is run.
        let program = manager.program().rsplit('/').next().unwrap();
        assert!(manager.refresh().iter().any(|argv| argv[0] == program), "{manager:?}");
        assert_eq!(manager.install(&wanted)[0][0], program);
    }
    let asked = |manager: Manager| lines(&manager.ask_available(&names(&["git", "vim"])));
    assert_eq!(asked(Manager::Apt), ["apt-cache madison git vim"]);
    assert_eq!(asked(Manager::Pacman), ["pacman -Si git vim"]);
    assert_eq!(asked(Manager::Xbps), ["xbps-query -R -p pkgver git", "xbps-query -R -p pkgver vim"]);
}

/// A manager, what it answered, the names that were asked for, and what is known then.
type Answer<'a> = (Manager, &'a str, &'a [&'a str], &'a [(&'a str, &'a str)]);

#[test]
fn installed_versions() {
    let table: &[Answer<'_>] = &[
        (
            Manager::Apt,
            "installed git amd64 1:2.39.5-0+deb12u2\nconfig-files vim amd64 2:9.0\ninstalled libc6 amd64 2.36-9\n\
             installed libc6 i386 2.36-8\nnot-installed awk all \n",
            &["git", "vim", "libc6", "libc6:i386", "awk"],
            &[("git", "1:2.39.5-0+deb12u2"), ("libc6", "2.36-9"), ("libc6:i386", "2.36-8")],
        ),
        (
            Manager::Dnf,
            "git 2.47.0-1.fc41\nvim-enhanced 2:9.1.825-1.fc41\ngit-core 2.47.0-1.fc41\ngit 2.47.0-1.fc41\n",
            &["git", "vim-enhanced", "vim"],
            &[("git", "2.47.0-1.fc41"), ("vim-enhanced", "2:9.1.825-1.fc41")],
        ),
        (Manager::Zypper, "git 2.47.0-1.1\n", &["git"], &[("git", "2.47.0-1.1")]),
        (Manager::Pacman, "git 2.47.0-1\nlinux-api-headers 6.10-1\n", &["git"], &[("git", "2.47.0-1")]),
        (
            Manager::Apk,
            "git-2.45.2-r0\ngit-perl-2.45.2-r0\nlibstdc++-13.2.1_git20240309-r0\n",
            &["git", "libstdc++"],
            &[("git", "2.45.2-r0"), ("libstdc++", "13.2.1_git20240309-r0")],
        ),
        (
            Manager::Xbps,
            "ii git-2.47.0_1              Git Tree History Storage Tool\n\
             ii python3-pip-24.2_1        Package manager\nuu vim-9.1.0_1  Editor\n",
            &["git", "python3-pip", "vim"],
            &[("git", "2.47.0_1"), ("python3-pip", "24.2_1"), ("vim", "9.1.0_1")],
        ),
    ];
    for (manager, output, asked, expected) in table {
        let found = manager.read_installed(output, &names(asked));
        let found: Vec<_> = found.iter().map(|p| (p.name.as_str(), p.version.as_str())).collect();
        assert_eq!(found, *expected, "{manager:?}");
    }
}

#[test]
fn available_versions() {
    let table: &[(Manager, &str, &[&str])] = &[
        (
            Manager::Apt,
            "       git | 1:2.39.5-0+deb12u2 | http://deb.debian.org/debian bookworm/main amd64 Packages\n       \
             git | 1:2.39.5-0+deb12u1 | http://deb.debian.org/debian-security bookworm-security/main amd64 Packages\n",
            &["1:2.39.5-0+deb12u2", "1:2.39.5-0+deb12u1"],
        ),
        (Manager::Dnf, "git 2.46.2-1.fc41\ngit 2.47.0-1.fc41\n\n", &["2.46.2-1.fc41", "2.47.0-1.fc41"]),
        (
            Manager::Zypper,
            "S  | Name | Type    | Version    | Arch   | Repository\n---+------+---------+------------+--------+---\n\
             i+ | git  | package | 2.47.0-1.1 | x86_64 | repo-oss\nv  | git  | package | 2.46.0-1.1 | x86_64 | repo-oss\n",
            &["2.47.0-1.1", "2.46.0-1.1"],
        ),
        (
            Manager::Pacman,
            "Repository      : extra\nName            : git\nVersion         : 2.47.0-1\nDescription     : the\n\
             Depends On      : curl  expat>=2.0\n",
            &["2.47.0-1"],
        ),
        (
            Manager::Apk,
            "git-2.45.2-r0 x86_64 {git} (GPL-2.0-only) [installed]\ngit-perl-2.45.2-r0 x86_64 {git} (GPL)\n",
            &["2.45.2-r0"],
        ),
        (Manager::Xbps, "git-2.47.0_1\n", &["2.47.0_1"]),
    ];
    for (manager, output, expected) in table {
        let found = manager.read_available(output, &names(&["git"]));
        assert_eq!(found.get("git").map(Vec::as_slice), Some(&names(expected)[..]), "{manager:?}");
        assert!(manager.read_available("no such thing\n", &names(&["git"])).is_empty(), "{manager:?}");
    }
}

#[test]
fn package_names() {
    for good in ["git", "g++", "libstdc++6", "libc6:i386", "python3.11", "R-core", "7zip", "gtk+3.0", "a@b"] {
        assert!(is_package_name(good), "{good}");
    }
    for bad in
        ["", "-y", "--force", "git-", "git*", "git=1", "./x.deb", "/x", "a b", "a;b", "@group", "naïve"]
    {
        assert!(!is_package_name(bad), "{bad}");
    }
}

#[test]
fn what_stays_out_of_the_layer_is_absolute_and_normal() {
    for manager in ALL {
        for path in manager.left_behind() {
            let normal = karapace_store::paths::normalise(path.as_bytes());
            assert_eq!(normal.as_deref(), Some(path.as_bytes()), "{manager:?}");
        }
    }
}
