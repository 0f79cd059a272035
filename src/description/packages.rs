//! The package managers of distributions: which one a root filesystem has, which commands install packages,
//! and how to parse their output. Nothing is run here.

use std::collections::BTreeMap;

use super::locked::LockedPackage;

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian, Ubuntu and their derivatives.
    Apt,
    /// Fedora, RHEL and their derivatives.
    Dnf,
    /// openSUSE and SLE.
    Zypper,
    /// Arch Linux and its derivatives.
    Pacman,
    /// Alpine.
    Apk,
    /// Void.
    Xbps,
}

/// A package to install, in any version or in a given one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The required version, if there is one.
    pub version: Option<String>,
    /// Where it comes from.
    pub source: Source,
}

/// Where a package comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The package manager's lists.
    Lists,
    /// The base image has it already, in the wanted version.
    Base,
    /// A file that the lists do not name; holds its address.
    File(String),
}

/// A command line.
pub type Argv = Vec<String>;

/// Package names with their versions; several versions of one name may be available.
pub type Versions = BTreeMap<String, Vec<String>>;

const ALL: [Manager; 6] =
    [Manager::Apt, Manager::Dnf, Manager::Zypper, Manager::Pacman, Manager::Apk, Manager::Xbps];

/// Paths that no layer of packages contains: what programs leave behind, and what the session put there.
const LEFT_BEHIND: [&str; 11] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/root/.ash_history",
    "/root/.bash_history",
    "/root/.lesshst",
    "/root/.python_history",
    "/root/.zsh_history",
    "/run",
    "/tmp",
    "/var/cache/ldconfig/aux-cache",
    "/var/tmp",
];

/// The architectures that rpm appends to tell packages apart, as `name.architecture`.
const RPM_ARCHITECTURES: [&str; 12] = [
    "aarch64",
    "armv7hl",
    "i386",
    "i586",
    "i686",
    "loongarch64",
    "noarch",
    "ppc64le",
    "riscv64",
    "s390x",
    "x86_64",
    "x86_64_v2",
];

/// rpm's lock file, in each place where a distribution keeps the database.
const RPM_LOCKS: [&str; 2] = ["/usr/lib/sysimage/rpm/.rpm.lock", "/var/lib/rpm/.rpm.lock"];

/// How many lines before the report of a failed script are shown: the script's own output.
const LINES_OF_A_SCRIPT: usize = 3;

/// Packages of apt run this program to learn whether they may start services.
const POLICY_RC_D: &str = "/usr/sbin/policy-rc.d";

impl Manager {
    /// The package manager of a root filesystem: its distribution's, by the text of /etc/os-release, if that
    /// program exists, else any that exists. `has` tells whether a path inside is a program.
    pub fn detect(os_release: &str, has: impl Fn(&str) -> bool) -> Option<Manager> {
        let there = |manager: &Manager| has(manager.program());
        let words = distribution(os_release);
        let own = words.iter().find_map(|word| Manager::of_distribution(word)).filter(there);
        own.or_else(|| ALL.into_iter().find(there))
    }

    fn of_distribution(word: &str) -> Option<Manager> {
        Some(match word {
            "debian" | "ubuntu" => Manager::Apt,
            "fedora" | "rhel" | "centos" | "rocky" | "almalinux" => Manager::Dnf,
            "suse" | "opensuse" | "opensuse-tumbleweed" | "opensuse-leap" | "sles" => Manager::Zypper,
            "arch" | "archlinux" => Manager::Pacman,
            "alpine" => Manager::Apk,
            "void" => Manager::Xbps,
            _ => return None,
        })
    }

    /// The manager's usual name.
    pub fn name(self) -> &'static str {
        match self {
            Manager::Apt => "apt",
            Manager::Dnf => "dnf",
            Manager::Zypper => "zypper",
            Manager::Pacman => "pacman",
            Manager::Apk => "apk",
            Manager::Xbps => "xbps",
        }
    }

    /// The program that installs, a path inside.
    pub fn program(self) -> &'static str {
        match self {
            Manager::Apt => "/usr/bin/apt-get",
            Manager::Dnf => "/usr/bin/dnf",
            Manager::Zypper => "/usr/bin/zypper",
            Manager::Pacman => "/usr/bin/pacman",
            Manager::Apk => "/sbin/apk",
            Manager::Xbps => "/usr/bin/xbps-install",
        }
    }

    /// Environment variables of every command: no questions are asked, and the output is in English.
    pub fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Manager::Apt => {
                &[("LC_ALL", "C.UTF-8"), ("DEBIAN_FRONTEND", "noninteractive"), ("DEBCONF_NOWARNINGS", "yes")]
            }
            _ => &[("LC_ALL", "C.UTF-8")],
        }
    }

    /// The commands that refresh the lists of packages.
    pub fn refresh(self) -> Vec<Argv> {
        match self {
            Manager::Apt => {
                let no_services = format!(
                    "test -e {POLICY_RC_D} || {{ printf '#!/bin/sh\\nexit 101\\n' >{POLICY_RC_D}; chmod 755 {POLICY_RC_D}; }}"
                );
                vec![
                    argv(&["/bin/sh", "-c", &no_services], &[]),
                    argv(&["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"], &[]),
                ]
            }
            Manager::Dnf => vec![argv(&["dnf", "-y", "makecache"], &[])],
            Manager::Zypper => vec![argv(&["zypper", "--non-interactive", "refresh"], &[])],
            Manager::Pacman => vec![argv(&["pacman", "-Sy", "--noconfirm"], &[])],
            Manager::Apk => vec![argv(&["apk", "update"], &[])],
            Manager::Xbps => vec![argv(&["xbps-install", "-y", "-S"], &[])],
        }
    }

    /// The commands that list the available versions of these packages; some programs accept one name only.
    pub fn ask_available(self, names: &[String]) -> Vec<Argv> {
        let each =
            |before: &[&str]| names.iter().map(|name| argv(before, std::slice::from_ref(name))).collect();
        match self {
            Manager::Apt => vec![argv(&["apt-cache", "madison"], names)],
            Manager::Dnf => {
                let format = "%{name} %{evr} %{arch}\n";
                vec![argv(&["dnf", "-q", "repoquery", "--showduplicates", "--qf", format], names)]
            }
            Manager::Zypper => {
                let before =
                    ["zypper", "-n", "--no-refresh", "search", "--details", "--match-exact", "-t", "package"];
                vec![argv(&before, names)]
            }
            // With each package's address, for [`Manager::file_of`].
            Manager::Pacman => each(&["pacman", "-Sddp", "--noconfirm", "--print-format", "%n %v %l"]),
            Manager::Apk => each(&["apk", "list", "--available"]),
            Manager::Xbps => each(&["xbps-query", "-R", "-p", "pkgver"]),
        }
    }

    /// Parses the output of [`Manager::ask_available`].
    pub fn read_available(self, output: &str, names: &[String]) -> Versions {
        let mut found = Versions::new();
        for line in output.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let words: Vec<&str> = line.split_whitespace().collect();
            match (self, cells.as_slice(), words.as_slice()) {
                (Manager::Apt, [name, version, _, ..], _) => {
                    found_one(&mut found, Some(((*name).to_owned(), (*version).to_owned())), names);
                }
                // Columns of zypper: status, name, type, version, architecture, repository.
                (Manager::Zypper, [_, name, "package", version, architecture, ..], _)
                | (Manager::Dnf, _, [name, version, architecture]) => {
                    found_rpm(&mut found, name, version, architecture, names);
                }
                (Manager::Pacman, _, [name, version, _]) => {
                    found_one(&mut found, Some(((*name).to_owned(), (*version).to_owned())), names);
                }
                (Manager::Apk, _, [word, ..]) => found_one(&mut found, split_version(word, 2), names),
                (Manager::Xbps, ..) => found_one(&mut found, split_version(line.trim(), 1), names),
                _ => {}
            }
        }
        found
    }

    /// The address where the package may be found in a version that the lists do not have: next to the listed
    /// version, whose address is in `output`, from [`Manager::ask_available`]. `None` if the manager's lists
    /// have all versions, or lack this package.
    pub fn file_of(self, output: &str, name: &str, version: &str) -> Option<String> {
        if self != Manager::Pacman {
            return None;
        }
        output.lines().find_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [found, newest, address] = words.as_slice() else { return None };
            let (directory, file) = address.rsplit_once('/')?;
            // `name-version-release-architecture.pkg.tar.zst`
            let end = file.strip_prefix(&format!("{name}-{newest}-"))?;
            (*found == name).then(|| format!("{directory}/{name}-{version}-{end}"))
        })
    }

    /// The command that tests whether there is a package at this address; it installs nothing.
    pub fn try_file(self, address: &str) -> Argv {
        argv(&["pacman", "-Uddw", "--noconfirm"], &[address.to_owned()])
    }

    /// The commands that install these packages, without those that are merely recommended.
    pub fn install(self, wanted: &[Wanted]) -> Vec<Argv> {
        let exact = |sign: &str| -> Vec<String> {
            let one = |one: &Wanted| match &one.version {
                Some(version) => format!("{}{sign}{version}", one.name),
                None => one.name.clone(),
            };
            wanted.iter().map(one).collect()
        };
        match self {
            Manager::Apt => {
                let before =
                    ["apt-get", "-q", "-y", "--no-install-recommends", "--allow-downgrades", "install"];
                vec![argv(&before, &exact("="))]
            }
            Manager::Dnf => {
                let before = ["dnf", "-y", "--setopt=install_weak_deps=False", "install"];
                let exact = wanted.iter().map(|one| match (&one.version, split_architecture(&one.name)) {
                    (Some(version), (name, Some(architecture))) => format!("{name}-{version}.{architecture}"),
                    (Some(version), (name, None)) => format!("{name}-{version}"),
                    (None, _) => one.name.clone(),
                });
                vec![argv(&before, &exact.collect::<Vec<_>>())]
            }
            Manager::Zypper => {
                let before = ["zypper", "--non-interactive", "install", "--no-recommends", "--oldpackage"];
                vec![argv(&before, &exact("="))]
            }
            Manager::Pacman => install_by_pacman(wanted),
            Manager::Apk => {
                let mut commands = vec![argv(&["apk", "add"], &exact("="))];
                // Otherwise apk's list of wanted packages would hold these versions for ever.
                if wanted.iter().any(|one| one.version.is_some()) {
                    let names: Vec<String> = wanted.iter().map(|one| one.name.clone()).collect();
                    commands.push(argv(&["apk", "add", "--no-network"], &names));
                }
                commands
            }
            Manager::Xbps => vec![argv(&["xbps-install", "-y"], &exact("-"))],
        }
    }

    /// Whether this exit status means that the command did its work.
    pub fn is_success(self, status: i32) -> bool {
        // zypper's statuses from 100 on are informational. These mean success: a reboot is needed (102),
        // zypper itself was updated (103), a script failed (107).
        status == 0 || (self == Manager::Zypper && matches!(status, 102 | 103 | 107))
    }

    /// For each package script that failed, the report of it in the output of an installation and the lines
    /// before it. rpm and pacman install such a package anyway and exit with success. Empty if none failed.
    pub fn failed_scripts(self, output: &str) -> Vec<&str> {
        let lines: Vec<&str> = output.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let mut told: Vec<&str> = Vec::new();
        let (mut in_packages, mut end) = (false, 0);
        for (i, line) in lines.iter().enumerate() {
            if line.starts_with(":: ") {
                // Pacman's headings. Hooks, which run afterwards, are not scripts of a package.
                in_packages = line.starts_with(":: Processing package changes");
            }
            let failed = match self {
                Manager::Dnf | Manager::Zypper => line.contains(" scriptlet failed"),
                Manager::Pacman => in_packages && line.contains("command failed to execute correctly"),
                Manager::Apt | Manager::Apk | Manager::Xbps => false,
            };
            if failed {
                told.extend(&lines[i.saturating_sub(LINES_OF_A_SCRIPT).max(end)..=i]);
                end = i + 1;
            }
        }
        told
    }

    /// The command that lists all installed packages.
    pub fn ask_installed(self) -> Argv {
        match self {
            Manager::Apt => {
                let format = "${db:Status-Status} ${Package} ${Architecture} ${Version}\n";
                argv(&["dpkg-query", "-W", "-f", format], &[])
            }
            Manager::Dnf | Manager::Zypper => {
                let format = "%{NAME} %|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE} %{ARCH}\n";
                argv(&["rpm", "-qa", "--qf", format], &[])
            }
            Manager::Pacman => argv(&["pacman", "-Q"], &[]),
            Manager::Apk => argv(&["apk", "info", "-v"], &[]),
            Manager::Xbps => argv(&["xbps-query", "-l"], &[]),
        }
    }

    /// The exact versions of the installed packages in `names`, from the output of
    /// [`Manager::ask_installed`].
    pub fn read_installed(self, output: &str, names: &[String]) -> Vec<LockedPackage> {
        let mut found = Versions::new();
        for line in output.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match (self, words.as_slice()) {
                (Manager::Apt, ["installed", name, architecture, version]) => {
                    // Of several architectures the machine's own comes first: dpkg lists foreign ones later.
                    let qualified = format!("{name}:{architecture}");
                    for name in [(*name).to_owned(), qualified] {
                        found_one(&mut found, Some((name, (*version).to_owned())), names);
                    }
                }
                (Manager::Dnf | Manager::Zypper, [name, version, architecture]) => {
                    found_rpm(&mut found, name, version, architecture, names);
                }
                (Manager::Pacman, [name, version]) => {
                    found_one(&mut found, Some(((*name).to_owned(), (*version).to_owned())), names);
                }
                (Manager::Apk, [word, ..]) => found_one(&mut found, split_version(word, 2), names),
                (Manager::Xbps, ["ii" | "uu", word, ..]) => {
                    found_one(&mut found, split_version(word, 1), names);
                }
                _ => {}
            }
        }
        let first = |(name, versions): (String, Vec<String>)| {
            versions.into_iter().next().map(|version| LockedPackage { name, version })
        };
        found.into_iter().filter_map(first).collect()
    }

    /// Paths that a layer of packages keeps as they are in its base: lists, caches, logs and histories.
    pub fn left_behind(self) -> impl Iterator<Item = &'static str> {
        let own: &[&str] = match self {
            Manager::Apt => &[
                POLICY_RC_D,
                "/var/cache/apt",
                "/var/cache/debconf/config.dat-old",
                "/var/cache/debconf/templates.dat-old",
                "/var/lib/apt/lists",
                "/var/lib/dpkg/diversions-old",
                "/var/lib/dpkg/lock",
                "/var/lib/dpkg/lock-frontend",
                "/var/lib/dpkg/statoverride-old",
                "/var/lib/dpkg/status-old",
                "/var/lib/dpkg/triggers/Lock",
                "/var/log/alternatives.log",
                "/var/log/apt",
                "/var/log/dpkg.log",
            ],
            Manager::Dnf => &[
                "/var/cache/dnf",
                "/var/cache/libdnf5",
                "/var/cache/yum",
                "/var/lib/dnf/repos",
                "/var/log/dnf.librepo.log",
                "/var/log/dnf.log",
                "/var/log/dnf.rpm.log",
                "/var/log/dnf5.log",
                "/var/log/hawkey.log",
                RPM_LOCKS[0],
                RPM_LOCKS[1],
            ],
            Manager::Zypper => &[
                "/var/cache/zypp",
                "/var/cache/zypper",
                "/var/lib/zypp/AnonymousUniqueId",
                "/var/log/zypp",
                "/var/log/zypper.log",
                RPM_LOCKS[0],
                RPM_LOCKS[1],
            ],
            Manager::Pacman => &["/var/cache/pacman/pkg", "/var/lib/pacman/sync", "/var/log/pacman.log"],
            Manager::Apk => &[
                "/etc/apk/cache",
                "/lib/apk/db/lock",
                "/usr/lib/apk/db/lock",
                "/var/cache/apk",
                "/var/log/apk.log",
            ],
            Manager::Xbps => &["/var/cache/xbps", "/var/db/xbps/lock"],
        };
        LEFT_BEHIND.iter().chain(own).copied()
    }
}

/// Whether a package manager reads `name` as the name of a package, and not as an option, pattern, file,
/// version or removal.
pub fn is_package_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"+._:-@".contains(&b);
    name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(good)
        && !name.ends_with('-')
}

/// The ID of an os-release text, then its ID_LIKE words, in order.
fn distribution(os_release: &str) -> Vec<String> {
    let value = |key: &str| {
        let line = os_release.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches(['"', '\'']).to_lowercase()).unwrap_or_default()
    };
    [value("ID"), value("ID_LIKE")]
        .iter()
        .flat_map(|text| text.split_whitespace())
        .map(str::to_owned)
        .collect()
}

fn argv(before: &[&str], after: &[String]) -> Argv {
    before.iter().map(|word| (*word).to_owned()).chain(after.iter().cloned()).collect()
}

/// First upgrades everything to the state of the lists, because Arch does not support partial upgrades; then
/// installs packages pinned to other versions from their files.
fn install_by_pacman(wanted: &[Wanted]) -> Vec<Argv> {
    let mut upgrade = argv(&["pacman", "-Su", "--noconfirm", "--needed"], &[]);
    let mut files = Vec::new();
    for one in wanted {
        match &one.source {
            Source::Lists => upgrade.push(one.name.clone()),
            Source::Base => upgrade.extend(["--ignore".to_owned(), one.name.clone()]),
            Source::File(address) => files.push(address.clone()),
        }
    }
    let mut commands = vec![upgrade];
    if !files.is_empty() {
        commands.push(argv(&["pacman", "-U", "--noconfirm", "--needed"], &files));
    }
    commands
}

/// Splits the architecture, if there is one, from the name of an rpm package.
fn split_architecture(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once('.') {
        Some((bare, architecture)) if RPM_ARCHITECTURES.contains(&architecture) => (bare, Some(architecture)),
        _ => (name, None),
    }
}

/// Records an rpm package with and without its architecture in the name. An epoch of zero means none.
fn found_rpm(found: &mut Versions, name: &str, version: &str, architecture: &str, names: &[String]) {
    let version = version.strip_prefix("0:").unwrap_or(version);
    for name in [name.to_owned(), format!("{name}.{architecture}")] {
        found_one(found, Some((name, version.to_owned())), names);
    }
}

/// Splits `name-version`, where the version has `parts` parts joined by dashes.
fn split_version(text: &str, parts: usize) -> Option<(String, String)> {
    let (at, _) = text.rmatch_indices('-').nth(parts - 1)?;
    let (name, version) = (&text[..at], &text[at + 1..]);
    let is_version = version.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
    (!name.is_empty() && is_version).then(|| (name.to_owned(), version.to_owned()))
}

fn found_one(found: &mut Versions, pair: Option<(String, String)>, names: &[String]) {
    if let Some((name, version)) = pair.filter(|(name, _)| names.contains(name)) {
        let versions = found.entry(name).or_default();
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
}

#[cfg(test)]
mod tests;
