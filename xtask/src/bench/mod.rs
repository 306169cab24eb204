//! `cargo xtask bench`: what leakmon costs, measured as ratios within one run.
//!
//! In: the subjects that were asked for. Out: a table each on standard output. One file a subject, one line each in
//! [`Subject`] and [`run`]; nothing here measures anything itself.

mod builds;
mod census;
mod crowds;
mod daemon;
mod ending;
mod http;
mod record;
mod remnants;
mod rivals;
mod scrapes;
mod server;
mod summary;
mod tasks;
mod verdicts;
mod watched;

use crate::workspace::Workspace;
use anyhow::Result;
use clap::ValueEnum;

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Subject {
    /// Nanoseconds that a task costs more in a program that only spawns
    Tasks,
    /// The same in other builds of that program, beside bpftrace
    Builds,
    /// Time and memory of the daemon, by rate, live tasks and callsites
    Daemon,
    /// Throughput of a server that does more than spawning
    Server,
    /// How long `run` takes to return when its command has ended
    Ending,
    /// How long a client waits for metrics beside slow ones
    Scrapes,
    /// How often verdicts are right, and how long they take, on simulated programs
    Verdicts,
    /// Seconds and memory of a census of a 4 GiB process with a million tasks, and how much slower that is meanwhile
    Census,
    /// How exact a census is, in every build of a program that knows its own tasks
    Crowds,
}

impl Subject {
    /// Its heading in `docs/performance.md`; `None` where it has a document of its own.
    const fn title(self) -> Option<&'static str> {
        Some(match self {
            Self::Tasks => "A task in a program that only spawns",
            Self::Builds => "A task in other builds, beside bpftrace",
            Self::Daemon => "The daemon",
            Self::Server => "A server that does more than spawning",
            Self::Ending => "The end of a run",
            Self::Scrapes => "A client beside slow ones",
            Self::Census => "A census of a large process",
            Self::Crowds => "How exact a census is",
            Self::Verdicts => return None,
        })
    }
}

/// Measured where no subject is named, in this order.
const DEFAULT: [Subject; 6] = [
    Subject::Tasks,
    Subject::Builds,
    Subject::Daemon,
    Subject::Server,
    Subject::Ending,
    Subject::Scrapes,
];

/// How much is measured, and what becomes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Whether the results go into `docs/performance.md`.
    pub(crate) record: bool,
    /// How often each configuration runs.
    pub(crate) rounds: usize,
    /// Tasks that a run times.
    pub(crate) tasks: usize,
}

/// Measures the subjects, one after the other.
pub(crate) fn run(workspace: &Workspace, subjects: &[Subject], effort: Effort) -> Result<()> {
    let subjects = if subjects.is_empty() { &DEFAULT[..] } else { subjects };
    remnants::adopt()?;
    for subject in subjects {
        let table = match subject {
            Subject::Tasks => tasks::run(workspace, effort)?,
            Subject::Builds => builds::run(workspace, effort)?,
            Subject::Daemon => daemon::run(workspace)?,
            Subject::Server => server::run(workspace, effort)?,
            Subject::Ending => ending::run(workspace, effort)?,
            Subject::Scrapes => scrapes::run(workspace)?,
            Subject::Verdicts => verdicts::run(workspace)?,
            Subject::Census => census::run(workspace, effort)?,
            Subject::Crowds => crowds::run(workspace, effort)?,
        };
        println!("\n{table}");
        if let (true, Some(title)) = (effort.record, subject.title()) {
            record::section(workspace, title, &table)?;
        }
    }
    Ok(())
}
