//! The command line.
//!
//! In: arguments. Out: one of the commands, with its options as written; what they mean together is checked where they
//! are used. The names are a contract (see the README).

use crate::targets::rules::Rule;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

/// Names the line that leaks tokio tasks, in a Rust binary as it is.
#[derive(Debug, Parser)]
#[command(version, about, propagate_version = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// Says more on stderr; twice for even more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failure, 2 usage, 3 a leak with --fail-on-leak (`diff`: something grew),
4 this host or target can't be probed. `run` exits with its command's code, and with 3 only where that is 0.

Examples:
  leakmon run -- ./target/release/app         watch a program from its first instruction
  leakmon attach -p 4711 --duration 60s       watch a running process for a minute
  leakmon daemon --exe /usr/bin/app           watch all processes of an executable, serve metrics";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a command and watches it from its first instruction
    #[command(after_help = "Examples:
  leakmon run -- ./target/release/app --port 8080
  leakmon run --format json -o report.json -- ./target/release/app
  leakmon run --fail-on-leak -- cargo test

Without -o the report goes to stderr when the command has ended; its own input and output are left alone.")]
    Run(RunArgs),
    /// Watches running processes
    #[command(after_help = "Examples:
  leakmon attach -p 4711
  leakmon attach -p 4711 -p 4712 --duration 60s --format folded -o stacks.txt
  leakmon attach --exe /usr/bin/app --duration 1m
  leakmon attach --all --include 'cgroup=*/kubepods*' --duration 1m

Ctrl-C ends the observation and prints the report. Births and ends are counted from then on; tasks that are older are read from the
process's memory. With --all the first look at every process, up to 20 seconds, comes before the duration begins.")]
    Attach(AttachArgs),
    /// Watches this host, or executables and processes, and serves HTTP
    #[command(after_help = "Examples:
  leakmon daemon
  leakmon daemon --include 'exe=/opt/*' --exclude user=root
  leakmon daemon --exe /usr/bin/app
  leakmon daemon --config /etc/leakmon/leakmon.toml
  curl http://127.0.0.1:5325/metrics
  leakmon daemon --cleanup                    remove what an ended daemon has kept

Probes and counts are kept in /sys/fs/bpf/leakmon where that is possible: a daemon that is killed, or ended by SIGTERM,
goes on where it was when it is started again. Ctrl-C removes them.")]
    Daemon(DaemonArgs),
    /// Shows live what grows, on the terminal
    #[command(after_help = "Examples:
  leakmon top -p 4711
  leakmon top --exe /usr/bin/app
  leakmon top --connect http://127.0.0.1:5325     what a daemon knows; needs no root

Keys: arrows select, / filters, s or a letter sorts, p pauses, PgUp and PgDn scroll the stack, q quits.")]
    Top(TopArgs),
    /// Prints the tasks that a process holds now, from its memory; no probes, no BPF
    #[command(after_help = "Examples:
  leakmon census -p 4711
  leakmon census -p 4711 --format json -o census.json

It finds the tasks of a service that has been running for days, those that have finished but are still held by a
JoinHandle or a JoinSet, and those that nothing can wake. The process is read, never written or stopped. It needs what a
debugger needs: the same user, or CAP_SYS_PTRACE.")]
    Census(CensusArgs),
    /// Prints where a binary would be probed; needs no root
    #[command(after_help = "Example:
  leakmon probes ./target/release/app")]
    Probes(ProbesArgs),
    /// Compares two JSON reports: what grew, what is fixed
    #[command(after_help = "Examples:
  leakmon run --format json -o old.json -- ./app     before the repair
  leakmon run --format json -o new.json -- ./app     and after it
  leakmon diff old.json new.json
  leakmon diff --format svg -o diff.svg old.json new.json

Exits with 3 where something grew: where a callsite has more live tasks than before, beyond the tolerance, and
the newer report does not call it steady.")]
    Diff(DiffArgs),
    /// Says whether this host can run leakmon, and what to do where it can't
    Doctor,
    /// Prints a completion script for a shell
    #[command(after_help = "Example:
  leakmon completions bash > /etc/bash_completion.d/leakmon")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Writes what a package installs beside the program: manual pages, completion scripts, the example configuration
    #[command(hide = true)]
    PackageFiles {
        /// Where they go
        folder: PathBuf,
    },
}

/// What `run` and `attach` have in common.
#[derive(Debug, Args)]
pub struct ObserveArgs {
    /// How long to watch, such as `10s` or `5m`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Form of the report
    #[arg(long, value_enum, default_value_t = FormatName::Table)]
    pub format: FormatName,
    /// Where the report goes
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Exits with 3 where a callsite leaks, or where a process ended and left most of a callsite's tasks behind
    #[arg(long)]
    pub fail_on_leak: bool,
    /// Writes every birth and end to a file, as trace events that Perfetto shows
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Counts by probe site only, without walking stacks
    #[arg(long)]
    pub no_stacks: bool,
    /// Never name functions of this crate or path as the culprit; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub hide: Vec<String>,
    /// Never call tasks of this crate or path a leak: they are expected to become more; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub allow: Vec<String>,
    /// Does not read the memory of running processes for tasks that are older than the attach, or finished and still held
    #[arg(long)]
    pub no_census: bool,
    /// How long a task must be without a waker to be called unwakeable
    #[arg(long, hide = true, value_name = "TIME", value_parser = duration, default_value = CONFIRM_INTERVAL)]
    pub confirm_interval: Duration,
    /// Walks each stack anew, even where the last walk would give the same
    #[arg(long, hide = true)]
    pub no_memo: bool,
    /// Attaches programs that do nothing: what the probes alone cost
    #[arg(long, hide = true)]
    pub empty_programs: bool,
    /// Records what the kernel tells, for a replay
    #[arg(long, hide = true, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Lets the BPF programs log
    #[arg(long, hide = true)]
    pub debug_programs: bool,
}

/// Longest observation that can be asked for.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration > DURATION_MAX {
        return Err("longer than ten years: leave it out to watch until Ctrl-C".to_owned());
    }
    Ok(duration)
}

/// Forms of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatName {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// For flame graphs.
    Folded,
    /// For `go tool pprof`.
    Pprof,
    /// A flame graph.
    Svg,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Common options.
    #[command(flatten)]
    pub observe: ObserveArgs,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// Options of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// A process to watch; repeatable
    #[arg(short, long = "pid", value_name = "PID", required_unless_present_any = ["exe", "all"])]
    pub pid: Vec<u32>,
    /// An executable whose processes are watched, those that start later too; repeatable
    #[arg(long, value_name = "PATH")]
    pub exe: Vec<PathBuf>,
    /// All processes of this host that run a known runtime, those that start later too
    #[arg(long)]
    pub all: bool,
    /// Which of them.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Common options.
    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// Options of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// A process to watch; repeatable
    #[arg(short, long = "pid", value_name = "PID", required_unless_present_any = ["exe", "connect"])]
    pub pid: Vec<u32>,
    /// An executable whose processes are watched, those that start later too; repeatable
    #[arg(long, value_name = "PATH")]
    pub exe: Vec<PathBuf>,
    /// Shows what this daemon knows instead, such as `http://127.0.0.1:5325`
    #[arg(long, value_name = "URL", conflicts_with_all = ["pid", "exe", "no_stacks", "hide", "allow"])]
    pub connect: Option<String>,
    /// Counts by probe site only, without walking stacks
    #[arg(long)]
    pub no_stacks: bool,
    /// Never name functions of this crate or path as the culprit; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub hide: Vec<String>,
    /// Never call tasks of this crate or path a leak: they are expected to become more; repeatable
    #[arg(long, value_name = "PATTERN")]
    pub allow: Vec<String>,
}

/// A URL at which there can be no daemon.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no address of a daemon: give --connect http://HOST:PORT")]
pub struct UrlError(pub String);

/// Which processes are wanted.
#[derive(Debug, Args)]
pub struct RuleArgs {
    /// Of the processes that are found, only those that match: KEY=PATTERN, more keys after commas, all must match; the keys are exe,
    /// command, cgroup (`*` stands for any characters, `?` for one) and user; repeatable, one must match
    #[arg(long, value_name = "RULE")]
    pub include: Vec<Rule>,
    /// No processes that match, such as `user=root` or `cgroup=*/kubepods*`; repeatable
    #[arg(long, value_name = "RULE")]
    pub exclude: Vec<Rule>,
}

/// Options of `daemon`.
#[derive(Debug, Args)]
pub struct DaemonArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A process to watch; repeatable, added to the configured ones
    #[arg(short, long = "pid", value_name = "PID")]
    pub pid: Vec<u32>,
    /// An executable whose processes are watched; repeatable, added to the configured ones
    #[arg(long, value_name = "PATH")]
    pub exe: Vec<PathBuf>,
    /// Keeps probes and counts when the daemon ends, so that it goes on where it was; the default where it is possible
    #[arg(long, conflicts_with = "no_pin")]
    pub pin: bool,
    /// Removes all probes when the daemon ends, however it ends
    #[arg(long)]
    pub no_pin: bool,
    /// Directory in a BPF file system where probes and counts are kept; one daemon each
    #[arg(long, value_name = "DIR", conflicts_with = "no_pin")]
    pub pin_dir: Option<PathBuf>,
    /// Removes what an ended daemon has kept, and ends
    #[arg(long, conflicts_with_all = ["pin", "no_pin"])]
    pub cleanup: bool,
    /// Which processes, added to the configured rules.
    #[command(flatten)]
    pub rules: RuleArgs,
    /// Address to serve HTTP on, instead of the configured one
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Serves an address that is reachable from elsewhere without TLS and without passwords
    #[arg(long)]
    pub allow_open_listen: bool,
}

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The older report, made with `--format json`
    pub old: PathBuf,
    /// The newer report
    pub new: PathBuf,
    /// Form of the comparison
    #[arg(long, value_enum, default_value_t = DiffFormat::Table)]
    pub format: DiffFormat,
    /// Where the comparison goes
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How many more live tasks of a callsite are no growth
    #[arg(long, value_name = "TASKS", default_value_t = 0)]
    pub tolerance: u64,
}

/// Forms of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiffFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
    /// A flame graph.
    Svg,
}

/// How long a task must stay without a waker to be called unwakeable, unless given otherwise.
const CONFIRM_INTERVAL: &str = "2s";

/// Options of `census`.
#[derive(Debug, Args)]
pub struct CensusArgs {
    /// The process
    #[arg(short, long, value_name = "PID")]
    pub pid: u32,
    /// Form of the census
    #[arg(long, value_enum, default_value_t = CensusFormat::Table)]
    pub format: CensusFormat,
    /// Where it goes
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How long reading may take; what is not read by then is told
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub time_max: Option<Duration>,
    /// How long to wait before tasks without a waker are read again
    #[arg(long, hide = true, value_name = "TIME", value_parser = duration, default_value = CONFIRM_INTERVAL)]
    pub confirm_interval: Duration,
}

/// Forms of a census.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CensusFormat {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Options of `probes`.
#[derive(Debug, Args)]
pub struct ProbesArgs {
    /// An executable or shared library
    pub image: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_the_readme_shows_is_understood() {
        for line in [
            "leakmon run -- app --flag",
            "leakmon run --duration 10s --format json -o r.json -- app",
            "leakmon attach -p 1 -p 2",
            "leakmon attach --exe /usr/bin/app --duration 1m --format folded",
            "leakmon daemon",
            "leakmon daemon --include exe=/opt/*,user=www-data --exclude command=*--worker*",
            "leakmon attach --all --exclude user=root",
            "leakmon daemon --config /etc/leakmon/leakmon.toml",
            "leakmon daemon --exe /usr/bin/app --listen 127.0.0.1:0",
            "leakmon run --fail-on-leak -- cargo test",
            "leakmon attach -p 1 --trace trace.json",
            "leakmon diff old.json new.json",
            "leakmon diff --format svg -o diff.svg --tolerance 5 old.json new.json",
            "leakmon daemon --exe app --pin --pin-dir /sys/fs/bpf/other",
            "leakmon daemon --cleanup",
            "leakmon top -p 1",
            "leakmon top --exe /usr/bin/app --allow app::tenants",
            "leakmon top --connect http://127.0.0.1:5325",
            "leakmon probes app",
            "leakmon census -p 4711",
            "leakmon census -p 4711 --format json -o census.json",
            "leakmon doctor",
            "leakmon completions zsh",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "leakmon",
            "leakmon run",
            "leakmon run app",
            "leakmon attach",
            "leakmon attach -p x",
            "leakmon attach -p 1 --duration soon",
            "leakmon attach -p 1 --duration 500000000000y",
            "leakmon attach -p 1 --format xml",
            "leakmon daemon --listen nowhere",
            "leakmon daemon --pin --no-pin",
            "leakmon daemon --include /opt/*",
            "leakmon attach --include exe=/opt/*",
            "leakmon probes",
            "leakmon diff old.json",
            "leakmon diff --format folded old.json new.json",
            "leakmon diff --tolerance -1 old.json new.json",
        ] {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
