//! leakmon's own commands: `cargo xtask setup`, `build-ebpf`, `demo`, `test`, `bench`, `tidy`.
//!
//! This file dispatches; each command has a file of its own. Nothing here is part of the program that users run.
#![allow(clippy::print_stdout, reason = "these commands talk to a person")]

mod build_ebpf;
mod source_hash;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;
use workspace::Workspace;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "leakmon's build, test and measurement commands")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the BPF programs, with whichever BPF toolchain is there
    BuildEbpf {
        /// Build even if the object fits the sources
        #[arg(long)]
        force: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let workspace = Workspace::here();
    let result = match arguments.command {
        Command::BuildEbpf { force } => build_ebpf::run(&workspace, force),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
