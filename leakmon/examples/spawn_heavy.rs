//! Spawns trivial tasks as fast as it can and prints what processor time one costs: the victim of `cargo xtask bench`.
//!
//! Processor time, all threads together, and not the clock on the wall: it does not depend on what else the machine does.
//!
//! `--tasks N` are timed in each phase, in batches of `--batch N` that are all alive at once, spawned `--depth N` functions
//! further down than need be, beside `--held N` that never end.

mod victim;

use nix::time::{ClockId, clock_gettime};
use serde_json::json;
use std::{io, time::Duration};
use tokio::task::JoinHandle;
use victim::{Arguments, Presence, Site};

static TRIVIAL: Site = Site::new("trivial", "task", "spawn_all");
static SPAWN_ALL: Site = Site::new("spawn_all", "task", "main");
static HELD: Site = Site::new("held", "task", "hold");
static SITES: [&Site; 3] = [&TRIVIAL, &SPAWN_ALL, &HELD];

// The benchmarks call it from a program that has initialised something first.
pub(crate) fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["tasks", "batch", "depth", "held"])?;
    let batch = arguments.number("batch", 64).max(1);
    let tasks = arguments.number("tasks", 100_000);
    let depth = arguments.number("depth", 4);
    let held = arguments.number("held", 0);
    // With two workers it is chance whether a task is stolen and a sleeping thread woken for it, which costs more than the task.
    let runtime = victim::runtime_of(1, 1)?;

    // The first phase warms the allocator and the queues up.
    victim::first_phase(&arguments)?;
    runtime.block_on(hold(held));
    runtime.block_on(timed(tasks, batch, depth, held))?;
    victim::second_phase(&arguments, &SITES)?;
    let spent = runtime.block_on(timed(tasks, batch, depth, held))?;
    let ns_per_task = spent.as_nanos() as f64 / tasks.max(1) as f64;
    victim::leave(
        &arguments,
        &SITES,
        json!({ "tasks": tasks, "ns_per_task": ns_per_task }),
    )
}

async fn timed(tasks: usize, batch: usize, depth: usize, held: usize) -> io::Result<Duration> {
    let spent = tokio::spawn(spawn_all(tasks, batch, depth, SPAWN_ALL.enter())).await??;
    victim::settle(held).await;
    Ok(spent)
}

/// Spawns `count` tasks that stay.
async fn hold(count: usize) {
    for _ in 0..count {
        tokio::spawn(held(HELD.enter()));
    }
}

async fn held(_presence: Presence) {
    std::future::pending::<()>().await;
}

async fn spawn_all(tasks: usize, batch: usize, depth: usize, _presence: Presence) -> io::Result<Duration> {
    let mut handles = Vec::with_capacity(batch);
    let started = processor_time()?;
    let mut left = tasks;
    while left > 0 {
        let now = left.min(batch);
        spawn_below(depth, now, &mut handles);
        for handle in handles.drain(..) {
            handle.await?;
        }
        left -= now;
    }
    Ok(processor_time()? - started)
}

/// What all threads of this process have used so far.
fn processor_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// Spawns `count` tasks from a stack that is `depth` frames deeper than the caller's.
#[inline(never)]
fn spawn_below(depth: usize, count: usize, handles: &mut Vec<JoinHandle<()>>) {
    if depth > 0 {
        spawn_below(depth - 1, count, handles);
        // Something to do after the call, so that it is no tail call.
        std::hint::black_box(handles.len());
        return;
    }
    for _ in 0..count {
        handles.push(tokio::spawn(trivial(TRIVIAL.enter())));
    }
}

async fn trivial(_presence: Presence) {}
