//! A process that makes many others: cycles of exec and exit, then forks that exec nothing, and at last perhaps an exec of its own.
//!
//! With `--short 1` it is one of those others: it spawns three tasks, one of which ends, and exits. Every tenth fork spawns a
//! task in the child. `VICTIM_NEXT` names a program that it becomes after its second phase, instead of telling its truth.

#[path = "victim/fork.rs"]
mod fork;
mod victim;

use serde_json::json;
use std::{
    future::pending,
    io,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    thread,
};
use tokio::runtime::{Builder, Runtime};
use victim::{Arguments, Presence, Site};

static KEPT: Site = Site::new("keep", "task", "spawn_all");
static ENDED: Site = Site::new("end", "task", "spawn_all");
static SITES: [&Site; 2] = [&KEPT, &ENDED];

/// Children that are started at once.
const AT_ONCE: usize = 4;

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["execs", "forks", "short"])?;
    let runtime = Builder::new_current_thread().build()?;
    if arguments.number("short", 0) > 0 {
        spawn_all(&runtime, 2, 1);
        std::process::exit(0);
    }
    victim::first_phase(&arguments)?;
    spawn_all(&runtime, 5, 3);
    thread::scope(|scope| {
        let run = |part| scope.spawn(move || start_short_lives(part));
        let threads: Vec<_> = parts(arguments.number("execs", 0)).map(run).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| io::Error::other("a thread panicked"))?)
    })?;
    victim::second_phase(&arguments, &SITES)?;
    spawn_all(&runtime, 4, 6);
    for number in 0..arguments.number("forks", 0) {
        fork::fork(|| {
            if number % 10 == 0 {
                let _still_there = Builder::new_current_thread()
                    .build()
                    .map(|own| own.spawn(pending::<()>()));
            }
        })?;
    }
    if let Some(next) = std::env::var_os("VICTIM_NEXT") {
        return Err(Command::new(next).arg("--wait").env_remove("VICTIM_NEXT").exec());
    }
    // It has one thread, and no tasks of the runtime's own.
    victim::leave(&arguments, &SITES, json!({ "runtime_tasks": 0 }))
}

/// How many children each thread starts.
fn parts(all: usize) -> impl Iterator<Item = usize> {
    (0..AT_ONCE).map(move |part| all / AT_ONCE + usize::from(part < all % AT_ONCE))
}

fn start_short_lives(count: usize) -> io::Result<()> {
    let program = std::env::current_exe()?;
    for _ in 0..count {
        let mut command = Command::new(&program);
        command.args(["--short", "1"]).stdin(Stdio::null());
        if !command.status()?.success() {
            return Err(io::Error::other("a child failed"));
        }
    }
    Ok(())
}

/// Spawns tasks that stay and tasks that end, and waits for the latter.
fn spawn_all(runtime: &Runtime, kept: usize, ended: usize) {
    runtime.block_on(async {
        for _ in 0..kept {
            tokio::spawn(keep(KEPT.enter()));
        }
        let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
        for _ in 0..ended {
            tokio::spawn(end(ENDED.enter()));
        }
        victim::settle(before).await;
    });
}

async fn keep(_presence: Presence) {
    pending::<()>().await;
}

async fn end(_presence: Presence) {
    tokio::task::yield_now().await;
}
