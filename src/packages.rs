//! The package managers of distributions: which one a root filesystem has, what is run to install packages, and what the answers
//! mean. Pure: nothing is run here.

use std::collections::BTreeMap;

use crate::lockfile::LockedPackage;

/// A package manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// Debian, Ubuntu and what is made of them.
    Apt,
    /// Fedora, RHEL and what is made of them.
    Dnf,
    /// openSUSE and SLE.
    Zypper,
    /// Arch Linux and what is made of it.
    Pacman,
    /// Alpine.
    Apk,
    /// Void.
    Xbps,
}

/// A package to install, at any version or at one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// The only version that will do.
    pub version: Option<String>,
}

/// A command line.
pub type Argv = Vec<String>;

/// Names with their versions; of what can be had, a name may have several.
pub type Versions = BTreeMap<String, Vec<String>>;

const ALL: [Manager; 6] =
    [Manager::Apt, Manager::Dnf, Manager::Zypper, Manager::Pacman, Manager::Apk, Manager::Xbps];

/// What no layer of packages takes, whatever made them: what programs leave behind, and what the session put there.
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

/// Where apt's packages find out that they must not start services.
const POLICY_RC_D: &str = "/usr/sbin/policy-rc.d";

impl Manager {
    /// The manager of a root filesystem: the one of its distribution by `os_release` (the text of /etc/os-release) if its program is
    /// there, else any whose program is. `has` says whether a path inside is a program.
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

    /// What people call it.
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

    /// Variables of every command: nothing is asked, and answers are in English.
    pub fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Manager::Apt => {
                &[("LC_ALL", "C.UTF-8"), ("DEBIAN_FRONTEND", "noninteractive"), ("DEBCONF_NOWARNINGS", "yes")]
            }
            _ => &[("LC_ALL", "C.UTF-8")],
        }
    }

    /// What refreshes the lists of packages.
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

    /// What asks which versions of these packages can be had; several commands where one takes one name only.
    pub fn ask_available(self, names: &[String]) -> Vec<Argv> {
        let each =
            |before: &[&str]| names.iter().map(|name| argv(before, std::slice::from_ref(name))).collect();
        match self {
            Manager::Apt => vec![argv(&["apt-cache", "madison"], names)],
            Manager::Dnf => {
                let format = "%{name} %{evr}\n";
                vec![argv(&["dnf", "-q", "repoquery", "--showduplicates", "--qf", format], names)]
            }
            Manager::Zypper => {
                let before =
                    ["zypper", "-n", "--no-refresh", "search", "--details", "--match-exact", "-t", "package"];
                vec![argv(&before, names)]
            }
            Manager::Pacman => vec![argv(&["pacman", "-Si"], names)],
            Manager::Apk => each(&["apk", "list", "--available"]),
            Manager::Xbps => each(&["xbps-query", "-R", "-p", "pkgver"]),
        }
    }

    /// Reads what [`Manager::ask_available`] printed.
    pub fn read_available(self, output: &str, names: &[String]) -> Versions {
        let mut found = Versions::new();
        let mut name = String::new();
        for line in output.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let pair = match self {
                Manager::Apt if cells.len() >= 3 => Some((cells[0].to_owned(), cells[1].to_owned())),
                // Status, name, type, version, architecture, repository.
                Manager::Zypper if cells.len() >= 5 && cells[2] == "package" => {
                    Some((cells[1].to_owned(), cells[3].to_owned()))
                }
                Manager::Dnf => two_words(line),
                Manager::Pacman => {
                    match line.split_once(':').map(|(key, value)| (key.trim(), value.trim())) {
                        Some(("Name", value)) => {
                            value.clone_into(&mut name);
                            None
                        }
                        Some(("Version", value)) => Some((name.clone(), value.to_owned())),
                        _ => None,
                    }
                }
                Manager::Apk => line.split_whitespace().next().and_then(|word| split_version(word, 2)),
                Manager::Xbps => split_version(line.trim(), 1),
                _ => None,
            };
            found_one(&mut found, pair, names);
        }
        found
    }

    /// What installs these packages, without those that are merely recommended.
    pub fn install(self, wanted: &[Wanted]) -> Vec<Argv> {
        let names: Vec<String> = wanted.iter().map(|one| one.name.clone()).collect();
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
                vec![argv(&before, &exact("-"))]
            }
            Manager::Zypper => {
                let before = ["zypper", "--non-interactive", "install", "--no-recommends", "--oldpackage"];
                vec![argv(&before, &exact("="))]
            }
            // Arch knows no partial upgrades: everything comes to the state of the lists. A version cannot be chosen.
            Manager::Pacman => vec![argv(&["pacman", "-Su", "--noconfirm", "--needed"], &names)],
            Manager::Apk => {
                let mut commands = vec![argv(&["apk", "add"], &exact("="))];
                // So that the list of what is wanted does not hold the versions for ever.
                if wanted.iter().any(|one| one.version.is_some()) {
                    commands.push(argv(&["apk", "add", "--no-network"], &names));
                }
                commands
            }
            Manager::Xbps => vec![argv(&["xbps-install", "-y"], &exact("-"))],
        }
    }

    /// What lists all that is installed.
    pub fn ask_installed(self) -> Argv {
        match self {
            Manager::Apt => {
                let format = "${db:Status-Status} ${Package} ${Architecture} ${Version}\n";
                argv(&["dpkg-query", "-W", "-f", format], &[])
            }
            Manager::Dnf | Manager::Zypper => {
                let format = "%{NAME} %|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\n";
                argv(&["rpm", "-qa", "--qf", format], &[])
            }
            Manager::Pacman => argv(&["pacman", "-Q"], &[]),
            Manager::Apk => argv(&["apk", "info", "-v"], &[]),
            Manager::Xbps => argv(&["xbps-query", "-l"], &[]),
        }
    }

    /// The exact versions of `names`, from what [`Manager::ask_installed`] printed. Those that are not there are left out.
    pub fn read_installed(self, output: &str, names: &[String]) -> Vec<LockedPackage> {
        let mut found = Versions::new();
        for line in output.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match (self, words.as_slice()) {
                (Manager::Apt, ["installed", name, architecture, version]) => {
                    // Of several architectures the first is the machine's own: dpkg sorts foreign ones behind it.
                    let qualified = format!("{name}:{architecture}");
                    for name in [(*name).to_owned(), qualified] {
                        found_one(&mut found, Some((name, (*version).to_owned())), names);
                    }
                }
                (Manager::Dnf | Manager::Zypper | Manager::Pacman, _) => {
                    found_one(&mut found, two_words(line), names);
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

    /// What a layer of packages has as its base has it: lists, caches, logs and histories.
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
                "/var/log/dnf.librepo.log",
                "/var/log/dnf.log",
                "/var/log/dnf.rpm.log",
                "/var/log/dnf5.log",
                "/var/log/hawkey.log",
            ],
            Manager::Zypper => {
                &["/var/cache/zypp", "/var/cache/zypper", "/var/log/zypp", "/var/log/zypper.log"]
            }
            Manager::Pacman => &["/var/cache/pacman/pkg", "/var/lib/pacman/sync", "/var/log/pacman.log"],
            Manager::Apk => &["/etc/apk/cache", "/var/cache/apk", "/var/log/apk.log"],
            Manager::Xbps => &["/var/cache/xbps"],
        };
        LEFT_BEHIND.iter().chain(own).copied()
    }
}

/// Whether a package manager takes `name` for a package of this name, and for no option, pattern, file, version or removal.
pub fn is_package_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"+._:-@".contains(&b);
    name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && name.bytes().all(good)
        && !name.ends_with('-')
}

/// The distribution of an os-release text and those it is like, in that order.
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

fn two_words(line: &str) -> Option<(String, String)> {
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(name), Some(version), None) => Some((name.to_owned(), version.to_owned())),
        _ => None,
    }
}

/// `name-version` where the version has `parts` parts with a dash between them.
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
