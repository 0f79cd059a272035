use std::path::Path;

use karapace_store::import::Mounts;
use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};

/// Make an environment from a root filesystem, without a manifest
///
/// The kind of IMAGE is detected from its content: a tar archive, plain or compressed with gzip, xz or zstd;
/// a directory; an OCI image layout, as a directory or an archive; the output of `docker save`, also before
/// version 1.10; a directory written by `skopeo copy … dir:PATH` or `podman save --format docker-dir`. The
/// layers of an image become one base layer; of an image for several platforms, this machine's is taken.
///
/// With - the archive is read from standard input: `docker export ID | karapace import - --name N`. A FIFO is
/// read in the same way.
///
/// A name like debian/12, if there is no such file, is looked up on the image server: that of the LXC
/// project, or the one in KARAPACE_IMAGE_SERVER. A URL may include a checksum:
/// https://…/rootfs.tar.xz#sha256=….
///
/// A directory is imported without the file systems that are mounted below it: they are left out and listed,
/// and their mount points stay, empty. Files that vanish while the directory is read are left out and listed,
/// too.
///
/// With --onto, IMAGE is the upper directory of an unmounted overlay (overlayfs, fuse-overlayfs or podman).
/// The new environment shows what the mounted overlay showed: it is a clone of ENV with one more snapshot.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Archive, directory, - for standard input, http(s):// URL of an archive, or name of an image
    /// (debian/12)
    image: String,
    /// Name of the environment
    #[arg(long)]
    name: String,
    /// What the overlay was mounted on: an environment (its head), or ENV@SNAPSHOT
    #[arg(long, value_name = "ENV", conflicts_with = "offline")]
    onto: Option<String>,
    /// Use the downloaded archive without asking the server
    #[arg(long)]
    offline: bool,
    /// Include what is mounted below a directory, except file systems that show the kernel's state (proc,
    /// sysfs, cgroup, …)
    #[arg(long)]
    cross_mounts: bool,
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        // With --onto the environment must exist, and so must the store.
        let engine = if self.onto.is_some() { global.engine()? } else { global.engine_to_begin()? };
        let mounts = if self.cross_mounts { Mounts::TakeIn } else { Mounts::LeaveOut };
        let imported = match &self.onto {
            None => engine.import(&self.image, &self.name, self.offline, mounts, &Bars::on_stderr())?,
            Some(onto) => {
                let (env, snapshot) = match onto.split_once('@') {
                    Some((env, snapshot)) => (env, Some(snapshot)),
                    None => (onto.as_str(), None),
                };
                let env = engine.find(env)?;
                let upper = Path::new(&self.image);
                engine.import_upper(upper, &env, snapshot, &self.name, mounts, &Bars::on_stderr())?
            }
        };
        let env = &imported.metadata;
        if global.json() {
            ui::json(&json!({
                "name": env.name, "env_id": env.env_id, "short_id": env.short_id(), "instance": env.instance.to_hex(), "created": true,
                "entries": imported.entries, "bytes": imported.bytes,
            }))?;
            return Ok(());
        }
        let size = ui::size(imported.bytes);
        let (name, id) = (&env.name, env.short_id());
        ui::remark(&format!("{name} imported (env_id {id}): {} entries, {size}", imported.entries));
        ui::line(&if global.quiet() { env.instance.to_hex() } else { env.env_id.clone() })?;
        Ok(())
    }
}
