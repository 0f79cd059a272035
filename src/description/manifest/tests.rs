//! How a manifest is normalised, and every way in which it can be invalid.

use super::*;

const FULL: &str = r#"
manifest_version = 1
[base]
image = " debian/12 "
[system]
packages = ["git", " curl", "git"]
[gui]
apps = ["b", "a"]
[hardware]
gpu = true
[mounts]
workspace = "./:/workspace"
cache = "/tmp/a:b:/cache"
[runtime]
backend = "Namespace"
network_isolation = true
[runtime.resource_limits]
cpu_shares = 1024
memory_limit_mb = 4096
[snapshot]
ignore = ["/tmp/", "/var//cache/apt"]
"#;

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text, Path::new("karapace.toml"))
}

#[test]
fn normalises() {
    let m = parse(FULL).unwrap();
    assert_eq!(m.base.image, "debian/12");
    assert_eq!(m.system.packages, ["curl", "git"]);
    assert_eq!(m.gui.apps, ["a", "b"]);
    assert!(m.hardware.gpu && !m.hardware.audio);
    assert_eq!(m.mounts.keys().collect::<Vec<_>>(), ["cache", "workspace"]);
    assert_eq!(m.mounts["cache"], Mount { host: "/tmp/a:b".into(), container: "/cache".into() });
    assert_eq!(m.runtime.backend, Backend::Namespace);
    assert_eq!(m.runtime.resource_limits.cpu_shares, Some(1024));
    assert_eq!(m.snapshot.ignore, ["/tmp", "/var/cache/apt"]);
}

#[test]
fn toml_round_trip() {
    for m in [parse(FULL).unwrap(), Manifest::for_image("./rootfs.tar")] {
        let text = m.to_toml();
        assert_eq!(parse(&text).unwrap(), m, "{text}");
    }
}

/// A valid beginning of a manifest: three lines.
const HEAD: &str = "manifest_version = 1\n[base]\nimage = \"x\"\n";

/// Checks that each text is refused on the given line, with a reason that starts with the given words.
fn refused(table: &[(&str, usize, &str)]) {
    for (text, line, words) in table {
        match parse(text) {
            Err(ManifestError::Invalid { path, line: at, reason }) => {
                assert_eq!(at, *line, "{text}\n{reason}");
                assert!(reason.starts_with(words), "{text}\ngave {reason:?}, not {words:?}");
                let shown = ManifestError::Invalid { path, line: at, reason: reason.clone() }.to_string();
                assert_eq!(shown, format!("karapace.toml:{line}: {reason}"));
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

/// Like [`refused`], for text that follows `HEAD`; lines are counted from there.
fn refused_below(table: &[(&str, usize, &str)]) {
    for (text, line, words) in table {
        refused(&[(&format!("{HEAD}{text}"), line + 3, words)]);
    }
}

#[test]
fn what_every_manifest_must_have() {
    refused(&[
        ("", 1, "missing key `manifest_version`"),
        ("[base]\nimage = \"x\"\n", 1, "missing key `manifest_version`"),
        ("manifest_version = 1\n", 1, "missing key `base`"),
        ("manifest_version = 1\n[base]\n", 2, "missing key `image`"),
        ("manifest_version = 1\nbase = \"x\"\n", 2, "invalid type: string \"x\", expected struct RawBase"),
        (
            "manifest_version = 0\n[base]\nimage = \"x\"",
            1,
            "manifest_version is 0; this karapace reads version 1 only",
        ),
        (
            "\nmanifest_version = 2\n[base]\nimage = \"x\"",
            2,
            "manifest_version is 2; this karapace reads version 1 only",
        ),
        ("manifest_version = \"1\"\n[base]\nimage = \"x\"", 1, "invalid type: string \"1\", expected i64"),
        ("manifest_version = \n", 1, ""),
        ("manifest_version = 1\n[base\nimage = \"x\"\n", 2, ""),
        ("manifest_version = 1\n[base]\nimage = \"x\n", 3, ""),
        (&format!("{HEAD}[base]\n"), 4, "duplicate key"),
        (&format!("{HEAD}image = \"y\"\n"), 4, "duplicate key"),
    ]);
}

#[test]
fn unknown_keys() {
    refused(&[(
        "version = 1\nmanifest_version = 1\n[base]\nimage = \"x\"\n",
        1,
        "unknown key `version`, expected one of `manifest_version`",
    )]);
    refused_below(&[
        ("imaeg = 1\n", 1, "unknown key `imaeg`, expected `image`"),
        ("[sytem]\n", 1, "unknown key `sytem`, expected one of"),
        ("[system]\npakages = []\n", 2, "unknown key `pakages`, expected `packages`"),
        ("[gui]\nx = 1\n", 2, "unknown key `x`, expected `apps`"),
        ("[hardware]\ncpu = true\n", 2, "unknown key `cpu`, expected `gpu` or `audio`"),
        ("[runtime]\n\nnet = true\n", 3, "unknown key `net`, expected one of `backend`"),
        (
            "[runtime.resource_limits]\ncpus = 1\n",
            2,
            "unknown key `cpus`, expected `cpu_shares` or `memory_limit_mb`",
        ),
        ("[snapshot]\nignored = []\n", 2, "unknown key `ignored`, expected `ignore`"),
    ]);
}

#[test]
fn wrong_types() {
    refused(&[
        ("manifest_version = 1\n[base]\nimage = 1\n", 3, "invalid type: integer `1`, expected a string"),
        ("manifest_version = 1\n[base]\nimage = [\"x\"]\n", 3, "invalid type: sequence, expected a string"),
        (
            "manifest_version = 1.5\n[base]\nimage = \"x\"\n",
            1,
            "invalid type: floating point `1.5`, expected i64",
        ),
    ]);
    refused_below(&[
        ("[system]\npackages = \"git\"\n", 2, "invalid type: string \"git\", expected a sequence"),
        ("[system]\npackages = [\n\"git\",\n1]\n", 4, "invalid type: integer `1`, expected a string"),
        ("[gui]\napps = true\n", 2, "invalid type: boolean `true`, expected a sequence"),
        ("[gui]\napps = [[]]\n", 2, "invalid type: sequence, expected a string"),
        ("[hardware]\ngpu = \"yes\"\n", 2, "invalid type: string \"yes\", expected a boolean"),
        ("[hardware]\n\naudio = 1\n", 3, "invalid type: integer `1`, expected a boolean"),
        ("[mounts]\nw = 1\n", 2, "invalid type: integer `1`, expected a string"),
        ("[mounts.w]\nhost = \".\"\n", 1, "invalid type: map, expected a string"),
        ("[runtime]\nbackend = 1\n", 2, "invalid type: integer `1`, expected a string"),
        ("[runtime]\nnetwork_isolation = \"no\"\n", 2, "invalid type: string \"no\", expected a boolean"),
        ("[runtime]\nresource_limits = 1\n", 2, "invalid type: integer `1`, expected struct RawLimits"),
        ("[runtime.resource_limits]\ncpu_shares = \"1\"\n", 2, "invalid type: string \"1\", expected i64"),
        (
            "[runtime.resource_limits]\nmemory_limit_mb = 1.5\n",
            2,
            "invalid type: floating point `1.5`, expected i64",
        ),
        ("[snapshot]\nignore = \"/tmp\"\n", 2, "invalid type: string \"/tmp\", expected a sequence"),
        ("[snapshot]\nignore = [1]\n", 2, "invalid type: integer `1`, expected a string"),
    ]);
}

#[test]
fn wrong_values() {
    let pinned = |digest: &str| format!("manifest_version = 1\n[base]\n\nimage = \"./x#content={digest}\"\n");
    let no_digest = |digest: &str| {
        format!(
            "base.image: {digest:?} after #content= is not a digest of 64 digits 0-9 and a-f; `karapace pin`"
        )
    };
    for digest in ["", "abc", &"AB".repeat(32), &"ab".repeat(33), &"xy".repeat(32)] {
        refused(&[(&pinned(digest), 4, &no_digest(digest))]);
    }
    parse(&pinned(&"ab".repeat(32))).unwrap();
    let nameless = format!("manifest_version = 1\n[base]\nimage = \"#content={}\"\n", "ab".repeat(32));
    refused(&[
        ("manifest_version = 1\n[base]\nimage = \" \"\n", 3, "base.image is empty"),
        (&nameless, 3, "base.image has no image before #content="),
    ]);
    let mount = "write \"host:container\", for example \"./:/workspace\"";
    refused_below(&[
        ("[system]\npackages = [\n\"a\",\n\"b c\"]\n", 4, "system.packages: \"b c\" is not a valid name"),
        ("[system]\npackages = [\" \"]\n", 2, "system.packages: \" \" is not a valid name"),
        (
            "[system]\npackages = [\"git\", \"--force\"]\n",
            2,
            "system.packages: \"--force\" is not a package name: use letters, digits",
        ),
        ("[system]\npackages = [\"git=1.0\"]\n", 2, "system.packages: \"git=1.0\" is not a package name"),
        ("[system]\npackages = [\"a/../b\"]\n", 2, "system.packages: \"a/../b\" is not a package name"),
        ("[gui]\napps = [\n\"gimp=2\"]\n", 3, "gui.apps: \"gimp=2\" is not a package name"),
        ("[gui]\napps = [\"\"]\n", 2, "gui.apps: \"\" is not a valid name"),
        ("[mounts]\nw = \"nowhere\"\n", 2, &format!("mounts.w: there is no ':'; {mount}")),
        ("[mounts]\nw = \":/x\"\n", 2, &format!("mounts.w: the host path is empty; {mount}")),
        (
            "[mounts]\nw = \".:x\"\n",
            2,
            &format!("mounts.w: the container path must be absolute and without '..'; {mount}"),
        ),
        ("[mounts]\na = \".:/a\"\nw = \".:/a/../b\"\n", 3, "mounts.w: the container path must be absolute"),
        ("[mounts]\n\"a:b\" = \".:/a\"\n", 2, "mounts.a:b: a label must not be empty or contain ':'"),
        ("[mounts]\n\"\" = \".:/a\"\n", 2, "mounts.: a label must not be empty or contain ':'"),
        (
            "[runtime]\nbackend = \"docker\"\n",
            2,
            "runtime.backend: \"docker\" is not one of namespace, oci, mock",
        ),
        ("[runtime]\nbackend = \"\"\n", 2, "runtime.backend: \"\" is not one of"),
        ("[runtime.resource_limits]\ncpu_shares = 0\n", 2, "cpu_shares must be above zero, not 0"),
        (
            "[runtime.resource_limits]\nmemory_limit_mb = -1\n",
            2,
            "memory_limit_mb must be above zero, not -1",
        ),
        (
            "[snapshot]\nignore = [\"tmp\"]\n",
            2,
            "snapshot.ignore: \"tmp\" must be an absolute path below / without '..'",
        ),
        ("[snapshot]\nignore = [\n\"/tmp\",\n\"/\"]\n", 4, "snapshot.ignore: \"/\" must be an absolute path"),
        ("[snapshot]\nignore = [\"/a/../b\"]\n", 2, "snapshot.ignore: \"/a/../b\" must be an absolute path"),
        ("[snapshot]\nignore = [\"\"]\n", 2, "snapshot.ignore: \"\" must be an absolute path"),
    ]);
}

#[test]
fn a_manifest_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("karapace.toml");
    let error = Manifest::read(&missing).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("cannot read manifest {}: No such file or directory (os error 2)", missing.display())
    );
    std::fs::write(&missing, b"\xff").unwrap();
    assert!(Manifest::read(&missing).unwrap_err().to_string().contains("not UTF-8 text"));
}

/// docs/MANIFEST.md: each example is a manifest, and the table has each key.
#[test]
fn the_page_is_right() {
    let page = include_str!("../../../docs/MANIFEST.md");
    let texts = page.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    let examples: Vec<Manifest> =
        texts.map(|text| Manifest::parse(text, Path::new("MANIFEST.md")).expect(text)).collect();
    let mut keys = Vec::new();
    add_keys("", &examples[0].to_toml().parse().unwrap(), &mut keys);
    let rows = page.lines().take_while(|line| !line.starts_with("```"));
    let mut named: Vec<&str> = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    keys.sort();
    named.sort_unstable();
    assert_eq!(named, keys, "the keys of the table, and those of its full example");
}

/// The dotted keys of a table; each label of `mounts` is LABEL.
fn add_keys(prefix: &str, table: &toml::Table, keys: &mut Vec<String>) {
    for (key, value) in table {
        let name = format!("{prefix}{}", if prefix == "mounts." { "LABEL" } else { key });
        match value {
            toml::Value::Table(inner) => add_keys(&format!("{name}."), inner, keys),
            _ if keys.contains(&name) => {}
            _ => keys.push(name),
        }
    }
}
