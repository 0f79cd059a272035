//! Detection, commands and output of each package manager. The output is modelled on what the programs
//! printed.

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
        // Another distribution's manager may be installed too.
        ("ID=debian\n", &["/usr/bin/dnf", "/usr/bin/apt-get"], Some(Manager::Apt)),
        ("ID=fedora\n", &["/usr/bin/dnf", "/usr/bin/apt-get"], Some(Manager::Dnf)),
        // os-release is unknown or missing: the installed manager counts.
        ("ID=somewhere\n", &["/usr/bin/pacman"], Some(Manager::Pacman)),
        ("", &["/sbin/apk"], Some(Manager::Apk)),
        // The manager is known, but its program does not exist.
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
    let wanted = [wanted("git", Some("1:2-3"), Source::Lists), wanted("vim", None, Source::Lists)];
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
        // The program that was detected is the one that is run.
        let program = manager.program().rsplit('/').next().unwrap();
        assert!(manager.refresh().iter().any(|argv| argv[0] == program), "{manager:?}");
        assert_eq!(manager.install(&wanted)[0][0], program);
    }
    let asked = |manager: Manager| lines(&manager.ask_available(&names(&["git", "vim"])));
    assert_eq!(asked(Manager::Apt), ["apt-cache madison git vim"]);
    let print = "pacman -Sddp --noconfirm --print-format %n %v %l";
    assert_eq!(asked(Manager::Pacman), [format!("{print} git"), format!("{print} vim")]);
    assert_eq!(asked(Manager::Xbps), ["xbps-query -R -p pkgver git", "xbps-query -R -p pkgver vim"]);
}

fn wanted(name: &str, version: Option<&str>, source: Source) -> Wanted {
    Wanted { name: name.to_owned(), version: version.map(str::to_owned), source }
}

#[test]
fn an_architecture_stands_behind_the_version_for_dnf_alone() {
    let wanted =
        [wanted("glibc.i686", Some("2-1"), Source::Lists), wanted("python3.11", Some("1:3-1"), Source::Base)];
    assert_eq!(
        lines(&Manager::Dnf.install(&wanted)),
        ["dnf -y --setopt=install_weak_deps=False install glibc-2-1.i686 python3.11-1:3-1"]
    );
    let zypper = lines(&Manager::Zypper.install(&wanted));
    assert!(zypper[0].ends_with(" glibc.i686=2-1 python3.11=1:3-1"), "{zypper:?}");
}

#[test]
fn pacman_installs_other_versions_than_its_lists_have_by_their_files() {
    let answer = "greet 1:2.0-1 http://mirror/extra/greet-1:2.0-1-any.pkg.tar.zst\n";
    let file = Manager::Pacman.file_of(answer, "greet", "1:1.0-1").unwrap();
    assert_eq!(file, "http://mirror/extra/greet-1:1.0-1-any.pkg.tar.zst");
    assert_eq!(Manager::Pacman.file_of(answer, "other", "1.0-1"), None);
    assert_eq!(Manager::Dnf.file_of(answer, "greet", "1:1.0-1"), None);
    assert_eq!(Manager::Pacman.try_file(&file).join(" "), format!("pacman -Uddw --noconfirm {file}"));
    let wanted = [
        wanted("greet", Some("1:1.0-1"), Source::File(file.clone())),
        wanted("kept", Some("1-1"), Source::Base),
        wanted("new", None, Source::Lists),
    ];
    assert_eq!(
        lines(&Manager::Pacman.install(&wanted)),
        [
            "pacman -Su --noconfirm --needed --ignore kept new".to_owned(),
            format!("pacman -U --noconfirm --needed {file}")
        ]
    );
}

#[test]
fn failed_scripts_are_reported_whatever_the_status() {
    let dnf = "  Running scriptlet: broken-1.0-1.fc9.noarch           1/1 \npost of broken\n\
               warning: %post(broken-1.0-1.fc9.noarch) scriptlet failed, exit status 1\n\n\
               Error in POSTIN scriptlet in rpm package broken\n\nComplete!\n";
    let told = [
        "Running scriptlet: broken-1.0-1.fc9.noarch           1/1",
        "post of broken",
        "warning: %post(broken-1.0-1.fc9.noarch) scriptlet failed, exit status 1",
    ];
    assert_eq!(Manager::Dnf.failed_scripts(dnf), told);
    assert_eq!(Manager::Zypper.failed_scripts(dnf), told);
    let pacman = ":: Processing package changes...\ninstalling broken...\nbroken sets itself up\n\
                  error: command failed to execute correctly\ninstalling other...\n\
                  error: command failed to execute correctly\n\
                  :: Running post-transaction hooks...\n(1/1) Reloading...\nerror: command failed to execute correctly\n";
    assert_eq!(
        Manager::Pacman.failed_scripts(pacman),
        [
            ":: Processing package changes...",
            "installing broken...",
            "broken sets itself up",
            "error: command failed to execute correctly",
            "installing other...",
            "error: command failed to execute correctly",
        ]
    );
    for manager in ALL {
        assert!(manager.failed_scripts("Setting up git ...\nComplete!\n").is_empty());
        assert_eq!(
            [0, 1, 8, 100, 104, 106].map(|status| manager.is_success(status)),
            [true, false, false, false, false, false]
        );
        assert!([102, 107].iter().all(|status| manager.is_success(*status) == (manager == Manager::Zypper)));
    }
}

/// A manager, its output, the names that were asked for, and the versions that it reports.
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
            "git 0:2.47.0-1.fc41 x86_64\nvim-enhanced 2:9.1.825-1.fc41 x86_64\ngit-core 2.47.0-1.fc41 x86_64\n\
             glibc 2.40-3.fc41 x86_64\nglibc 2.40-3.fc41 i686\n",
            &["git", "vim-enhanced", "vim", "glibc", "glibc.i686"],
            &[
                // An explicit epoch of zero means none, for everything that compares versions.
                ("git", "2.47.0-1.fc41"),
                ("glibc", "2.40-3.fc41"),
                ("glibc.i686", "2.40-3.fc41"),
                ("vim-enhanced", "2:9.1.825-1.fc41"),
            ],
        ),
        (Manager::Zypper, "git 2.47.0-1.1 x86_64\n", &["git"], &[("git", "2.47.0-1.1")]),
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
        (
            Manager::Dnf,
            "git 2.46.2-1.fc41 x86_64\n\ngit 2.47.0-1.fc41 x86_64\n\n",
            &["2.46.2-1.fc41", "2.47.0-1.fc41"],
        ),
        (
            Manager::Zypper,
            "S  | Name | Type    | Version    | Arch   | Repository\n---+------+---------+------------+--------+---\n\
             i+ | git  | package | 2.47.0-1.1 | x86_64 | repo-oss\nv  | git  | package | 2.46.0-1.1 | x86_64 | repo-oss\n",
            &["2.47.0-1.1", "2.46.0-1.1"],
        ),
        (
            Manager::Pacman,
            "error: target not found: nothing\n\
             git 2.47.0-1 https://mirror/extra/os/x86_64/git-2.47.0-1-x86_64.pkg.tar.zst\n",
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
