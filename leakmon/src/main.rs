//! The `leakmon` command: parses, runs one command, turns its outcome into an exit code.

use clap::Parser;
use leakmon::{
    analysis::ZYGOTE_NAME,
    cli::{Cli, Command},
    commands,
};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::{EnvFilter, fmt};

fn main() -> ExitCode {
    // Started by leakmon itself.
    if std::env::args_os().next().is_some_and(|name| name == ZYGOTE_NAME) {
        return commands::serve_analyses();
    }
    let cli = Cli::parse();
    let has_screen = matches!(cli.command, Command::Top(_)) && std::io::stderr().is_terminal();
    let level = match cli.verbose {
        // A line in the middle of the screen would stay there.
        _ if has_screen => "off",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // Results go to stdout, everything else to stderr.
    fmt()
        .with_env_filter(EnvFilter::new(format!("leakmon={level}")))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return commands::Exit::from(anyhow::Error::from(error)).report(),
    };
    let outcome = runtime.block_on(commands::execute(cli.command));
    // Nothing that still runs in the background should hold the exit up.
    runtime.shutdown_background();
    outcome.unwrap_or_else(commands::Exit::from).report()
}
