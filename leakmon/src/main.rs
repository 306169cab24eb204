//! The `leakmon` command: parses, runs one command, turns its outcome into an exit code.

use clap::Parser;
use leakmon::{
    analysis::ZYGOTE_NAME,
    cli::{Cli, Command},
    commands, heap, logging,
};
use std::{io::IsTerminal, process::ExitCode};

fn main() -> ExitCode {
    heap::return_large_blocks();
    // Started by leakmon itself.
    if std::env::args_os().next().is_some_and(|name| name == ZYGOTE_NAME) {
        return commands::serve_analyses();
    }
    let cli = Cli::parse();
    // A line in the middle of the screen would stay there.
    let has_screen = matches!(cli.command, Command::Top(_)) && std::io::stderr().is_terminal();
    if !has_screen {
        logging::start(cli.verbose);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return commands::Exit::from(anyhow::Error::from(error)).report(),
    };
    let outcome = runtime.block_on(commands::execute(cli.command));
    // Nothing that still runs in the background should hold the exit up.
    runtime.shutdown_background();
    outcome.unwrap_or_else(commands::Exit::from).report()
}
