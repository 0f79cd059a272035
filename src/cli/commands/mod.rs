//! The commands, one per file.

mod archive;
mod build;
mod clone;
mod commit;
mod completions;
mod destroy;
mod diff;
mod doctor;
mod du;
mod enter;
mod exec;
mod export;
mod export_app;
mod freeze;
mod gc;
mod ground;
mod import;
mod inspect;
mod list;
mod man_pages;
mod migrate;
mod mount;
mod mount_all;
pub mod mount_helper;
mod new;
mod overlay;
mod pin;
mod rebuild;
mod rename;
mod restore;
mod run;
mod snapshots;
mod stop;
mod tell_watchers;
mod umount;
mod verify_store;

use clap::Subcommand;

use super::Global;
use super::ui::Failure;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    New(new::Args),
    Build(build::Args),
    Rebuild(rebuild::Args),
    Pin(pin::Args),
    Import(import::Args),
    Export(export::Args),
    Mount(mount::Args),
    #[command(visible_alias = "unmount")]
    Umount(umount::Args),
    Enter(enter::Args),
    Exec(exec::Args),
    Run(run::Args),
    Stop(stop::Args),
    Commit(commit::Args),
    Restore(restore::Args),
    Snapshots(snapshots::Args),
    Diff(diff::Args),
    Du(du::Args),
    List(list::Args),
    Inspect(inspect::Args),
    Clone(clone::Args),
    Rename(rename::Args),
    Freeze(freeze::Args),
    Archive(archive::Args),
    Destroy(destroy::Args),
    Gc(gc::Args),
    VerifyStore(verify_store::Args),
    Migrate(migrate::Args),
    Doctor(doctor::Args),
    ExportApp(export_app::Args),
    Completions(completions::Args),
    ManPages(man_pages::Args),
    #[command(hide = true)]
    TellWatchers(tell_watchers::Args),
    #[command(hide = true)]
    Ground(ground::Args),
    #[command(hide = true)]
    Overlay(overlay::Args),
}

impl Command {
    /// Runs the command and returns its exit status.
    pub fn run(&self, global: &Global) -> Result<i32, Failure> {
        match self {
            Command::Enter(args) => return args.run(global),
            Command::Exec(args) => return args.run(global),
            Command::Run(args) => return args.run(global),
            Command::New(args) => args.run(global),
            Command::Build(args) => args.run(global),
            Command::Rebuild(args) => args.run(global),
            Command::Pin(args) => args.run(global),
            Command::Import(args) => args.run(global),
            Command::Export(args) => args.run(global),
            Command::Mount(args) => args.run(global),
            Command::Umount(args) => args.run(global),
            Command::Stop(args) => args.run(global),
            Command::Commit(args) => args.run(global),
            Command::Restore(args) => args.run(global),
            Command::Snapshots(args) => args.run(global),
            Command::Diff(args) => args.run(global),
            Command::Du(args) => args.run(global),
            Command::List(args) => args.run(global),
            Command::Inspect(args) => args.run(global),
            Command::Clone(args) => args.run(global),
            Command::Rename(args) => args.run(global),
            Command::Freeze(args) => args.run(global),
            Command::Archive(args) => args.run(global),
            Command::Destroy(args) => args.run(global),
            Command::Gc(args) => args.run(global),
            Command::VerifyStore(args) => args.run(global),
            Command::Migrate(args) => args.run(global),
            Command::Doctor(args) => args.run(global),
            Command::ExportApp(args) => args.run(global),
            Command::Completions(args) => args.run(),
            Command::ManPages(args) => args.run(global),
            Command::TellWatchers(args) => args.run(),
            Command::Ground(args) => args.run(),
            Command::Overlay(args) => args.run(),
        }?;
        Ok(0)
    }

    /// Whether this is the background process of a mount.
    pub fn is_background(&self) -> bool {
        matches!(self, Command::Mount(args) if args.is_background())
    }

    /// Whether the command changes nothing in the store, nor in processes that use it.
    pub fn only_reads(&self) -> bool {
        match self {
            Command::List(_) | Command::Inspect(_) | Command::Diff(_) | Command::Du(_) => true,
            Command::Export(_) | Command::Doctor(_) => true,
            Command::Completions(_) | Command::ManPages(_) => true,
            Command::Snapshots(args) => args.only_reads(),
            Command::VerifyStore(args) => args.only_reads(),
            Command::Gc(args) => args.only_reads(),
            _ => false,
        }
    }

    /// Whether the exit status belongs to a command inside.
    pub fn is_session(&self) -> bool {
        matches!(self, Command::Enter(_) | Command::Exec(_) | Command::Run(_))
    }
}
