use crate::cli::ui::{self, Failure};
use crate::cli::{Global, exit};
use crate::engine::server::info::MountInfo;

/// List all environments
#[derive(Debug, clap::Args)]
#[command(visible_alias = "ls")]
pub struct Args {}

impl Args {
    pub fn run(&self, global: &Global) -> Result<(), Failure> {
        let (environments, unreadable) = match global.engine_if_any()? {
            Some(engine) => engine.list()?,
            None => Default::default(),
        };
        if global.json() {
            ui::json(&environments)?;
        } else if global.quiet() {
            environments.iter().try_for_each(|env| ui::line(&env.instance))?;
        } else {
            let row = |env: &crate::engine::record::inspect::Summary| {
                vec![
                    env.name.clone(),
                    env.short_id.clone(),
                    env.state.clone(),
                    env.head[..12].to_owned(),
                    env.snapshots.to_string(),
                    shown(env.mount.as_ref(), env.sessions),
                ]
            };
            let rows: Vec<_> = environments.iter().map(row).collect();
            ui::table(&["NAME", "SHORT_ID", "STATE", "HEAD", ">SNAPSHOTS", "MOUNT"], &rows)?;
        }
        for error in &unreadable {
            ui::complain(&format!("karapace: {error}"));
        }
        if unreadable.is_empty() { Ok(()) } else { Err(Failure::Status(exit::STORE)) }
    }
}

/// The mount point, and whether it is one here (processes may use a mount that was detached, or that another
/// mount namespace has); and how many sessions there are.
fn shown(mount: Option<&MountInfo>, sessions: usize) -> String {
    let place = mount.filter(|mount| !mount.session).map(|mount| {
        let elsewhere = if mount.is_seen_here() { "" } else { " (not mounted here)" };
        format!("{}{elsewhere}", mount.dir.display())
    });
    let sessions = match sessions {
        0 => None,
        1 => Some("1 session".to_owned()),
        many => Some(format!("{many} sessions")),
    };
    let parts: Vec<_> = place.into_iter().chain(sessions).collect();
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}
