use clap::ValueEnum;
use clap_complete::env::Shells;

use crate::cli::complete::PROGRAM;
use crate::cli::ui::Failure;
use crate::cli::writer;
use crate::engine::Error;

/// Print a script that lets a shell complete commands, environments and snapshots
///
/// bash: source <(karapace completions bash), in ~/.bashrc. zsh: the same after compinit, in ~/.zshrc.
/// fish: karapace completions fish > ~/.config/fish/completions/karapace.fish
#[derive(Debug, clap::Args)]
pub struct Args {
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Args {
    pub fn run(&self) -> Result<(), Failure> {
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
        };
        let shells = Shells::builtins();
        let shell = shells.completer(name).ok_or_else(|| Error::Invalid(format!("{name} is not known")))?;
        let mut script = Vec::new();
        shell.write_registration("COMPLETE", PROGRAM, PROGRAM, PROGRAM, &mut script)?;
        Ok(writer::raw(&script)?)
    }
}
