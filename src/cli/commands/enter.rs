use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use karapace_store::text;

use crate::cli::Global;
use crate::cli::ui::{self, Bars, Failure};
use crate::engine::Error;
use crate::engine::instance::reference;
use crate::engine::session::enter::EnterOptions;
use crate::engine::session::run::Origin;
use crate::process;
use crate::runtime::{Choices, Ended, HomeMode};

/// Open a shell inside an environment, or run a command
///
/// The exit status is the command's own; 125 if karapace failed, 126 if the command cannot be executed, 127
/// if it does not exist, 128+n if signal n killed it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name, env_id or unique prefix
    env: String,
    #[command(flatten)]
    session: SessionArgs,
    /// The command. Default: the user's shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How `enter` and `exec` run their command.
#[derive(Debug, clap::Args)]
pub(super) struct SessionArgs {
    /// Run as this user of the environment (name or id, optionally with :group), or as yourself: self.
    /// Default: root
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Directory inside to start in
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Set a variable
    #[arg(short = 'e', long = "env", value_name = "NAME=VALUE", value_parser = VariableParser)]
    variables: Vec<(OsString, OsString)>,
    /// Set a variable to what the caller has; for values that no command line may show
    #[arg(long, hide = true, value_name = "NAME")]
    pass: Vec<String>,
    /// Pass on N descriptors in addition to the standard streams: 3, 4 and so on; all others are closed
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    preserve_fds: u32,
    /// Show the control directory /.karapace inside, and let programs there use it
    #[arg(long)]
    ctl: bool,
    /// Which home directory the command sees
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    home: HomeMode,
    /// Deny no system calls, let root keep all capabilities, and let set-user-id programs gain privileges
    /// even with one id
    #[arg(long)]
    privileged: bool,
    /// Run in a temporary copy, which is removed with all changes when the command has ended, as by run
    #[arg(long, conflicts_with = "keep")]
    rm: bool,
    /// Run in a temporary copy, and make the environment NAME of it when the command has ended, whatever its
    /// exit status
    #[arg(long, value_name = "NAME")]
    keep: Option<String>,
}

impl SessionArgs {
    /// Runs a command in an environment or, if a temporary copy is asked for, in that.
    pub(super) fn run(&self, global: &Global, env: &str, argv: &[OsString]) -> Result<i32, Failure> {
        if self.rm || self.keep.is_some() {
            return self.run_in_copy(global, env, argv);
        }
        let engine = global.engine()?;
        let env = engine.find(env)?;
        finish(&engine.enter(&env, &self.options(argv)?)?)
    }

    /// Runs a command in a temporary copy of an environment or image.
    pub(super) fn run_in_copy(
        &self,
        global: &Global,
        origin: &str,
        argv: &[OsString],
    ) -> Result<i32, Failure> {
        if self.ctl {
            let reason =
                "--ctl: a temporary copy has no control directory, because nothing can be committed in it";
            return Err(Error::Invalid(reason.to_owned()).into());
        }
        let options = self.options(argv)?;
        // For an image no store need be there.
        let engine = if is_image(origin) { global.engine_to_begin()? } else { global.engine()? };
        let (env, snapshot) = reference::split(origin);
        let found = engine.find(env);
        let origin = match &found {
            Ok(env) => Origin::Environment(env, snapshot),
            Err(Error::NoEnvironment { .. }) if is_image(origin) => Origin::Image(origin),
            Err(Error::NoEnvironment { .. }) => return Err(no_origin(origin).into()),
            Err(_) => return found.map(|_| 0).map_err(Failure::from),
        };
        let (ended, kept) = engine.run(&origin, &options, self.keep.as_deref(), &Bars::on_stderr())?;
        if let Some(env) = kept {
            ui::remark(&format!("kept as {}", env.name));
        }
        finish(&ended)
    }

    fn options(&self, argv: &[OsString]) -> Result<EnterOptions, Error> {
        let passed = self.pass.iter().filter_map(|key| Some((key.into(), std::env::var_os(key)?)));
        Ok(EnterOptions {
            argv: argv.to_vec(),
            user: self.user.clone(),
            workdir: self.workdir.clone(),
            env: passed.chain(self.variables.iter().cloned()).collect(),
            show_control: self.ctl,
            choices: Choices { home: self.home, privileged: self.privileged },
            output: None,
            preserved: self.preserved()?,
            hostname: None,
        })
    }

    /// How many descriptors to pass on. Refused if the caller did not open all of them.
    fn preserved(&self) -> Result<u32, Error> {
        let open = process::inherited_descriptors();
        if self.preserve_fds <= open {
            return Ok(self.preserve_fds);
        }
        let (wanted, missing) = (self.preserve_fds, u64::from(open) + 3);
        Err(Error::Invalid(format!(
            "--preserve-fds {wanted}: descriptor {missing} is not open; open it in the shell ({missing}< FILE), or pass on fewer"
        )))
    }
}

impl Args {
    pub fn run(&self, global: &Global) -> Result<i32, Failure> {
        self.session.run(global, &self.env, &self.command)
    }
}

/// The exit status of a command that has ended; does not return if an interrupt ended it.
fn finish(ended: &Ended) -> Result<i32, Failure> {
    if let Some(interrupt) = ended.interrupt {
        process::die_of(interrupt);
    }
    Ok(ended.status)
}

/// Whether a word may name an image: it is no mere name.
fn is_image(word: &str) -> bool {
    word.contains(['/', ':'])
}

fn no_origin(word: &str) -> Error {
    Error::Invalid(format!(
        "there is no environment {word:?} (see `karapace list`), and an image is given by its path, its URL, or a name with a slash \
         such as debian/12"
    ))
}

/// Parses `NAME=VALUE`, in which any bytes are allowed.
#[derive(Clone)]
pub(super) struct VariableParser;

impl clap::builder::TypedValueParser for VariableParser {
    type Value = (OsString, OsString);

    fn parse_ref(
        &self,
        command: &clap::Command,
        _arg: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Self::Value, clap::Error> {
        let bytes = value.as_bytes();
        match bytes.iter().position(|b| *b == b'=') {
            Some(at) if at > 0 => {
                let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
                Ok((part(&bytes[..at]), part(&bytes[at + 1..])))
            }
            _ => {
                let value = value.to_string_lossy();
                let text = format!("{}: write a variable as NAME=VALUE\n", text::line(&value));
                Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, text).with_cmd(command))
            }
        }
    }
}
