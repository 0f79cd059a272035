use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use karapace_store::compress::Compression;
use karapace_store::error::StoreError;
use serde_json::json;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::cli::writer;
use crate::engine::export::image::{Exported, Format, Target, Wanted};
use crate::engine::instance::reference;
use crate::engine::{Engine, Error, Report};

/// Write an environment as a tar of its root filesystem, or as an OCI image
///
/// Writes the environment's head; uncommitted changes are not included, and a note says so. Equal content
/// gives equal bytes. An OCI image has the base as its first layer and one more layer per snapshot; its name
/// in the layout is the environment's (skopeo copy oci:DIR:ENV …), in lower case.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix; with @ and a snapshot (hash, prefix, name, latest, base or ~k) that one
    #[arg(value_name = "ENV[@SNAPSHOT]")]
    env: String,
    /// tar: with all attributes, sparse files and hard links. oci: an image layout for podman, skopeo and
    /// others
    #[arg(long, value_enum, default_value = "tar")]
    format: FormatArg,
    /// The file to write, completely or not at all; - is stdout. A name ending in .tar.gz, .tgz, .tar.zst or
    /// .tar.xz selects that compression. An OCI image is written as a layout directory, or as an archive if
    /// the name ends in .tar or one of these
    #[arg(short, long, value_name = "FILE", default_value = "-", hide_default_value = true)]
    output: PathBuf,
    /// How to compress the tar, whatever its name, or the layers of an OCI image (not xz; default: none)
    #[arg(long, value_enum, value_name = "HOW")]
    compress: Option<CompressArg>,
    /// Only these paths, from the environment's root, with the targets of their links and the directories
    /// above. tar only
    #[arg(last = true, value_name = "PATH")]
    paths: Vec<OsString>,
}

/// What to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    Tar,
    Oci,
}

/// How to compress it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CompressArg {
    Gzip,
    Zstd,
    Xz,
    None,
}

impl From<CompressArg> for Compression {
    fn from(arg: CompressArg) -> Compression {
        match arg {
            CompressArg::Gzip => Compression::Gzip,
            CompressArg::Zstd => Compression::Zstd,
            CompressArg::Xz => Compression::Xz,
            CompressArg::None => Compression::None,
        }
    }
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let engine = global.engine()?;
        let report = Bars::on_stderr();
        if self.output != Path::new("-") {
            let exported = self.export(&engine, Target::Path(&self.output), &report)?;
            return self.tell(global, &exported);
        }
        if writer::stdout_is_terminal() {
            let reason = "will not write an archive to a terminal: name a file with -o, or redirect stdout";
            return Err(Error::Invalid(reason.to_owned()).into());
        }
        let mut out = writer::raw_stdout()?;
        self.export(&engine, Target::Stream(&mut out, Path::new("stdout")), &report)?;
        out.flush()?;
        Ok(())
    }

    fn export(&self, engine: &Engine, target: Target<'_>, report: &dyn Report) -> Result<Exported, Failure> {
        let (env, snapshot) = reference::split(&self.env);
        let env = engine.find(env)?;
        let format = match self.format {
            FormatArg::Tar => Format::Tar,
            FormatArg::Oci => Format::Oci,
        };
        let compression = self.compress.map(Compression::from);
        let wanted = Wanted { snapshot, format, paths: &ui::bytes(&self.paths), compression };
        engine.export(&env, &wanted, target, report).map_err(|error| match error {
            // The reader has closed the pipe, which is treated as for any other output.
            Error::Store(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                Failure::Output(source)
            }
            other => other.into(),
        })
    }

    fn tell(&self, global: &Global, exported: &Exported) -> Result<(), Failure> {
        let path = self.output.display();
        if global.json() {
            ui::json(&json!({
                "path": path.to_string(), "layer": exported.layer, "entries": exported.entries, "digest": exported.digest,
            }))?;
            return Ok(());
        }
        ui::remark(&format!("{} entries written to {path}", exported.entries));
        if let Some(digest) = &exported.digest {
            ui::line(digest)?;
        }
        Ok(())
    }
}
