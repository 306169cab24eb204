//! The commands: one file each, and how their outcome becomes an exit code.
//!
//! In: parsed options. Out: a result on stdout or in a file, and an [`Exit`]. The work is done by the stages; a command
//! only puts them together.

mod attach;
mod census;
mod daemon;
mod diff;
mod doctor;
mod observation;
mod package_files;
mod probes;
mod progress;
mod run;
mod top;

use crate::{
    analysis::{self, Analyst, Job, self_test::SELF_TEST},
    cli::{Cli, Command, UrlError},
    config::ConfigError,
    export::{RenderOptions, escape::is_hostile, http::WebConfigError},
    kernel::KernelError,
    memory::{layout::UnknownLayout, reader::MemoryError},
    symbols::{
        hidden::HideError,
        naming::{BY_DEBUG_INFORMATION, BY_SYMBOL_TABLE},
    },
    targets::{
        AnalyseError, PLAN, UNWIND_TABLE,
        processes::ProcessError,
        rules::{Rule, RuleError, Rules},
    },
};
use anyhow::Context;
use clap::CommandFactory;
use nix::unistd::User;
use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
};

/// How a command came out.
#[derive(Debug)]
pub enum Exit {
    /// 0.
    Done,
    /// 3: a leak was found, or something grew.
    Leak,
    /// The code of the command that `run` ran.
    Command(u8),
    /// 1, 2 or 4, with the sentence that says why.
    Failed(u8, String),
}

/// Exit code of a failure.
const FAILURE: u8 = 1;
/// Exit code of a command line or configuration that makes no sense.
const USAGE: u8 = 2;
/// Exit code where a leak was found and the user wanted to be told so.
const LEAK: u8 = 3;
/// Exit code where this host or target can't be probed.
const UNPROBEABLE: u8 = 4;

/// This host or target can't be probed, for a reason that none of the stages' errors says.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unprobeable(String);

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Self {
        let any = |test: fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(test);
        let code = if any(|cause| {
            cause.is::<KernelError>()
                || cause.is::<AnalyseError>()
                || cause.is::<ProcessError>()
                || cause.is::<MemoryError>()
                || cause.is::<UnknownLayout>()
                || cause.is::<Unprobeable>()
        }) {
            UNPROBEABLE
        } else if any(|cause| {
            cause.is::<ConfigError>()
                || cause.is::<WebConfigError>()
                || cause.is::<HideError>()
                || cause.is::<UrlError>()
                || cause.is::<RuleError>()
        }) {
            USAGE
        } else {
            FAILURE
        };
        Self::Failed(code, format!("{error:#}"))
    }
}

impl Exit {
    /// Says on stderr why, where there is something to say.
    #[must_use]
    pub fn report(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::Leak => ExitCode::from(LEAK),
            Self::Command(code) => ExitCode::from(code),
            Self::Failed(code, sentence) => {
                say(&sentence);
                ExitCode::from(code)
            }
        }
    }
}

/// Executes one command.
///
/// # Errors
/// What made it impossible; [`Exit::from`] gives the exit code.
pub async fn execute(command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => run::execute(args).await,
        Command::Attach(args) => attach::execute(args).await,
        Command::Daemon(args) => daemon::execute(args).await,
        Command::Top(args) => top::execute(args).await,
        Command::Census(args) => census::execute(&args),
        Command::Probes(args) => probes::execute(&args),
        Command::Diff(args) => diff::execute(&args),
        Command::Doctor => doctor::execute(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "leakmon", &mut script);
            print(&script)?;
            Ok(Exit::Done)
        }
        Command::PackageFiles { folder } => package_files::execute(&folder),
    }
}

/// What children can be asked: each stage's jobs.
static JOBS: [&Job; 5] = [
    &PLAN,
    &UNWIND_TABLE,
    &BY_DEBUG_INFORMATION,
    &BY_SYMBOL_TABLE,
    &SELF_TEST,
];

/// Is the process that starts analyses, until leakmon is gone.
#[must_use]
pub fn serve_analyses() -> ExitCode {
    match analysis::serve(&JOBS) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("analyses can't be started: {error}"));
            ExitCode::from(FAILURE)
        }
    }
}

/// Starts the process that starts analyses: before rights are given up.
fn analyst() -> anyhow::Result<Analyst> {
    Analyst::start(Path::new("/proc/self/exe")).context("the process that starts analyses can't be started")
}

/// Rules as the stages use them, with this host's users.
fn rules(include: &[Rule], exclude: &[Rule]) -> Result<Arc<Rules>, RuleError> {
    let uid = |name: &str| Some(User::from_name(name).ok()??.uid.as_raw());
    Rules::new(include, exclude, uid).map(Arc::new)
}

/// Says one line on stderr.
fn say(line: &str) {
    let _closed = writeln!(io::stderr(), "leakmon: {}", harmless(line));
}

/// A sentence in which paths of targets may stand, without what a terminal would obey. Line ends stay: the parser of the
/// configuration shows a line of it.
fn harmless(text: &str) -> String {
    let shown = |character: char| {
        if character != '\n' && is_hostile(character) {
            character.escape_default().collect()
        } else {
            String::from(character)
        }
    };
    text.chars().map(shown).collect()
}

/// Writes to stdout. A reader that has gone wants no more: that is no failure.
fn print(bytes: &[u8]) -> anyhow::Result<()> {
    write(&mut io::stdout().lock(), bytes).context("stdout can't be written")
}

fn write(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

/// Where a report goes.
#[derive(Clone, Copy, Debug)]
enum Destination<'a> {
    Stdout,
    Stderr,
    File(&'a Path),
}

impl Destination<'_> {
    fn is_terminal(self) -> bool {
        match self {
            Self::Stdout => io::stdout().is_terminal(),
            Self::Stderr => io::stderr().is_terminal(),
            Self::File(_) => false,
        }
    }

    /// How text for people is to look there.
    fn options(self) -> RenderOptions {
        let colour = self.is_terminal();
        let size = match self {
            Self::Stdout => terminal_size::terminal_size_of(io::stdout()),
            Self::Stderr => terminal_size::terminal_size_of(io::stderr()),
            Self::File(_) => None,
        };
        RenderOptions {
            width: size.map(|(width, _)| width.0).filter(|_| colour),
            colour,
        }
    }

    fn write(self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Stdout => print(bytes),
            Self::Stderr => write(&mut io::stderr().lock(), bytes).context("stderr can't be written"),
            Self::File(path) => {
                std::fs::write(path, bytes).with_context(|| format!("{}: can't be written", path.display()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_gives_a_terminal_nothing_to_obey() {
        assert_eq!(harmless("a \u{1b}[2J b\nc \u{202e}"), "a \\u{1b}[2J b\nc \\u{202e}");
        assert_eq!(harmless("/usr/bin/föö: no such file"), "/usr/bin/föö: no such file");
    }
}
