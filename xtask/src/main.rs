//! leakmon's own commands: `cargo xtask setup`, `build-ebpf`, `demo`, `victims`, `test`, `matrix`, `bench`, `fuzz`, `tidy`.
//!
//! This file dispatches; each command has a file of its own. Nothing here is part of the program that users run.
#![allow(clippy::print_stdout, reason = "these commands talk to a person")]

mod bench;
mod build_ebpf;
mod crowds;
mod demo;
mod deploy;
mod fuzz;
mod matrix;
mod setup;
mod source_hash;
mod stage;
mod test;
mod tidy;
mod victims;
mod workspace;

use clap::{Parser, Subcommand};
use setup::Purpose;
use std::{path::PathBuf, process::ExitCode};
use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "leakmon's build, test and measurement commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what this machine lacks to build and to test
    Setup {
        /// Only what building takes
        #[arg(long)]
        build: bool,
        /// What the matrix's programs for musl take, too; some 350 MB
        #[arg(long, conflicts_with = "build")]
        musl: bool,
    },
    /// Build the BPF programs, with whichever BPF toolchain is there
    BuildEbpf {
        /// Build even if the object fits the sources
        #[arg(long)]
        force: bool,
    },
    /// Show leakmon at work on a program that leaks
    Demo,
    /// Build the victims in every way that the kernel tests compare
    Victims,
    /// Check formatting, lints, documentation, tests, tidiness and licences
    Test,
    /// Make the Debian package and the container's files, with a static leakmon, and try both
    Package,
    /// Write manual pages and completions, and the example configuration of `deploy/systemd`
    PackageFiles,
    /// Boot a guest under systemd, with the package and a victim in it; not part of `test`
    Vm,
    /// Check what no compiler checks
    Tidy,
    /// Feed mutated files to what reads a target's files; not part of `test`
    Fuzz {
        /// Seconds for each of the targets
        #[arg(default_value_t = 600)]
        seconds: u32,
    },
    /// Compare leakmon's counts with those of programs of every tokio version, profile and way of linking; takes hours
    Matrix {
        /// Only the programs whose name contains this
        #[arg(long, value_name = "PATTERN")]
        only: Option<String>,
        /// Only the programs that were built before
        #[arg(long)]
        built: bool,
        /// Use this leakmon instead of building one
        #[arg(long, value_name = "PATH")]
        leakmon: Option<PathBuf>,
    },
    /// Measure what leakmon costs, as ratios within one run
    Bench {
        /// What to measure; all that says how leakmon compares where none is named
        subjects: Vec<bench::Subject>,
        /// How often each configuration runs
        #[arg(long, default_value_t = 7)]
        rounds: usize,
        /// Tasks that a run times
        #[arg(long, default_value_t = 100_000)]
        tasks: usize,
        /// Write the results into docs/performance.md
        #[arg(long)]
        record: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let workspace = Workspace::here();
    let result = match arguments.command {
        Command::Setup { build: true, .. } => setup::run(&workspace, Purpose::Build),
        Command::Setup { musl: true, .. } => setup::run(&workspace, Purpose::Musl),
        Command::Setup { .. } => setup::run(&workspace, Purpose::Test),
        Command::Package => deploy::check(&workspace),
        Command::PackageFiles => deploy::files(&workspace),
        Command::Vm => deploy::vm::run(&workspace),
        Command::BuildEbpf { force } => build_ebpf::run(&workspace, force),
        Command::Demo => demo::run(&workspace),
        Command::Victims => victims::build_all(&workspace),
        Command::Test => test::run(&workspace),
        Command::Tidy => tidy::run(&workspace),
        Command::Matrix { only, built, leakmon } => matrix::run(&workspace, matrix::Selection { only, built, leakmon }),
        Command::Fuzz { seconds } => fuzz::run(&workspace, seconds),
        Command::Bench {
            subjects,
            rounds,
            tasks,
            record,
        } => bench::run(&workspace, &subjects, bench::Effort { rounds, tasks, record }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
