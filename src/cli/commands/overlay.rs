use crate::cli::ui::Failure;
use crate::cli::writer;
use crate::engine::At as _;
use crate::engine::overlay::helper;

/// Work on an overlay with the ids of the user
///
/// Another command starts this, and speaks with it through standard input and output.
#[derive(Debug, clap::Args)]
pub struct Args {}

impl Args {
    pub fn run(&self) -> Result<(), Failure> {
        let mut answers = writer::raw_stdout().at("open", "standard output".as_ref())?;
        Ok(helper::run(&mut answers)?)
    }
}
