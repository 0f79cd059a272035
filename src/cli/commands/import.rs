use std::path::Path;

use karapace_store::import::Mounts;
use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};

/// Make an environment from a root filesystem, with no manifest
///
/// IMAGE is told apart by its content: a tar archive, plain or compressed with gzip, xz or zstd; a directory;
/// an OCI image layout, a directory or an archive of one; what `docker save` writes, of before version 1.10
/// too; a directory as `skopeo copy … dir:PATH` or `podman save --format docker-dir` leaves it. An image's
/// layers become one base layer; of several platforms this machine's is taken.
///
/// With - the archive comes from standard input: `docker export ID | karapace import - --name N`. A FIFO is
/// read in the same way.
///
/// A name like debian/12, where no such file is, is looked up on the image server: that of the LXC project,
/// or the one that KARAPACE_IMAGE_SERVER names. An address may carry its checksum:
/// https://…/rootfs.tar.xz#sha256=….
///
/// Of a directory one file system is taken: what is mounted below it is left out, and named; the mount points
/// stay, empty. What vanishes while the directory is read is left out and named, too.
///
/// With --onto, IMAGE is the upper directory of an overlay as overlayfs, fuse-overlayfs or podman leave it
/// (unmounted), and the environment is what the mounted overlay showed: that environment with one snapshot
/// more.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Archive, directory, - for standard input, http(s):// address of an archive, or name of an image
    /// (debian/12)
    image: String,
    /// Name of the environment
    #[arg(long)]
    name: String,
    /// Environment, or ENV@SNAPSHOT, that the overlay lay on; its head unless a snapshot is named
    #[arg(long, value_name = "ENV", conflicts_with = "offline")]
    onto: Option<String>,
    /// Use the archive that was downloaded before, without asking the server
    #[arg(long)]
    offline: bool,
    /// Take in what is mounted below a directory, but for the state of the kernel (proc, sysfs, cgroup, …)
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
