//! Spawns in every way that tokio has: `tokio::spawn`, `JoinSet::spawn`, `spawn_blocking`, `spawn_local`, a current-thread
//! runtime; handles dropped, kept and aborted; some panic, some never end. Its numbers are definite at the end.
//!
//! What spawns is a function that the compiler keeps whole, or the body of a task, so that `spawned_by` names a function that
//! exists in every build.
//!
//! `--count N` tasks of each sort that ends, `--forever N` of each that doesn't.

mod victim;

use serde_json::json;
use std::{future::pending, io, sync::mpsc};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::{JoinHandle, JoinSet, LocalSet, spawn_blocking, spawn_local, yield_now},
};
use victim::{Arguments, Presence, Site};

static OLD: Site = Site::new("old", "task", "spawn_old");
static DROPPED: Site = Site::new("dropped", "task", "spawn_dropped");
static KEPT: Site = Site::new("kept", "task", "spawn_kept");
static JOINED: Site = Site::new("joined", "task", "spawn_joined");
static ABORTED: Site = Site::new("aborted", "task", "spawn_aborted");
static PANICKING: Site = Site::new("panicking", "task", "spawn_panicking");
static FOREVER: Site = Site::new("forever", "task", "spawn_forever");
static BRANCH: Site = Site::new("branch", "task", "spawn_tree");
static LEAF: Site = Site::new("leaf", "task", "branch");
static SET_DRAINED: Site = Site::new("set_drained", "task", "fill_set");
static SET_DROPPED: Site = Site::new("set_dropped", "task", "fill_and_drop_set");
static SET_FOREVER: Site = Site::new("set_forever", "task", "fill_and_keep_set");
static BLOCKING_DONE: Site = Site::new("blocking_done", "blocking", "block_twice");
static BLOCKING_PANICKING: Site = Site::new("blocking_panicking", "blocking", "block_twice");
static BLOCKING_GATE: Site = Site::new("blocking_gate", "blocking", "block_and_abort");
static BLOCKING_ABORTED: Site = Site::new("blocking_aborted", "blocking", "block_and_abort");
static BLOCKING_FOREVER: Site = Site::new("blocking_forever", "blocking", "block_for_ever");
static BLOCKING_QUEUED: Site = Site::new("blocking_queued", "blocking", "block_for_ever");
static LOCAL_DONE: Site = Site::new("local_done", "local", "spawn_locally");
static LOCAL_PANICKING: Site = Site::new("local_panicking", "local", "spawn_locally");
static LOCAL_ABORTED: Site = Site::new("local_aborted", "local", "spawn_locally");
static LOCAL_FOREVER: Site = Site::new("local_forever", "local", "spawn_locally");
static CURRENT_DONE: Site = Site::new("current_done", "task", "spawn_on_current");
static CURRENT_FOREVER: Site = Site::new("current_forever", "task", "spawn_on_current");
static CURRENT_SHUT_DOWN: Site = Site::new("current_shut_down", "task", "spawn_and_shut_down");
static SITES: [&Site; 25] = [
    &OLD,
    &DROPPED,
    &KEPT,
    &JOINED,
    &ABORTED,
    &PANICKING,
    &FOREVER,
    &BRANCH,
    &LEAF,
    &SET_DRAINED,
    &SET_DROPPED,
    &SET_FOREVER,
    &BLOCKING_DONE,
    &BLOCKING_PANICKING,
    &BLOCKING_GATE,
    &BLOCKING_ABORTED,
    &BLOCKING_FOREVER,
    &BLOCKING_QUEUED,
    &LOCAL_DONE,
    &LOCAL_PANICKING,
    &LOCAL_ABORTED,
    &LOCAL_FOREVER,
    &CURRENT_DONE,
    &CURRENT_FOREVER,
    &CURRENT_SHUT_DOWN,
];

/// Threads for blocking tasks. When that many never return, every blocking task before them has completed.
const BLOCKING_THREADS: usize = 3;

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["count", "forever"])?;
    let count = arguments.number("count", 20);
    let forever = arguments.number("forever", 7);
    // The panics are meant.
    std::panic::set_hook(Box::new(|_| {}));
    let runtime = victim::runtime(BLOCKING_THREADS)?;

    victim::first_phase(&arguments)?;
    let mut old = runtime.block_on(async { spawn_old(count + forever) });
    victim::second_phase(&arguments, &SITES)?;
    // A dropped sender ends its task.
    old.truncate(forever);

    let mut handles = Vec::new();
    let set = runtime.block_on(async {
        spawn_dropped(count);
        spawn_kept(count, &mut handles);
        spawn_and_join(count).await;
        spawn_aborted(count);
        spawn_panicking(count);
        spawn_tree(count);
        spawn_forever(forever, &mut handles);
        fill_and_drain_set(count).await;
        fill_and_drop_set(count);
        let set = fill_and_keep_set(forever);
        block_shortly(count).await;
        block_and_abort(count)?;
        block_for_ever(forever)?;
        victim::settle(3 * forever).await;
        io::Result::Ok(set)
    })?;
    let local = spawn_locally(count, forever)?;
    let current = spawn_on_current(count, forever)?;
    spawn_and_shut_down(count)?;

    victim::leave(&arguments, &SITES, json!({}))?;
    drop((old, handles, set, local, current));
    Ok(())
}

/// Tasks that wait until their sender goes.
#[inline(never)]
fn spawn_old(count: usize) -> Vec<oneshot::Sender<()>> {
    let mut senders = Vec::new();
    for _ in 0..count {
        let (sender, end) = oneshot::channel();
        tokio::spawn(old(end, OLD.enter()));
        senders.push(sender);
    }
    senders
}

async fn old(end: oneshot::Receiver<()>, _presence: Presence) {
    let _ = end.await;
}

#[inline(never)]
fn spawn_dropped(count: usize) {
    for _ in 0..count {
        drop(tokio::spawn(dropped(DROPPED.enter())));
    }
}

async fn dropped(_presence: Presence) {
    yield_now().await;
}

/// The handles outlive the tasks, and hold their memory.
#[inline(never)]
fn spawn_kept(count: usize, handles: &mut Vec<JoinHandle<()>>) {
    for _ in 0..count {
        handles.push(tokio::spawn(kept(KEPT.enter())));
    }
}

async fn kept(_presence: Presence) {
    yield_now().await;
}

async fn spawn_and_join(count: usize) {
    for number in 0..count {
        let joined = spawn_joined(number).await;
        assert!(joined.is_ok_and(|joined| joined == number));
    }
}

#[inline(never)]
fn spawn_joined(number: usize) -> JoinHandle<usize> {
    tokio::spawn(joined(number, JOINED.enter()))
}

async fn joined(number: usize, _presence: Presence) -> usize {
    yield_now().await;
    number
}

/// Aborted at once: some before their first poll, some after, some during.
#[inline(never)]
fn spawn_aborted(count: usize) {
    for _ in 0..count {
        tokio::spawn(aborted(ABORTED.enter())).abort();
    }
}

async fn aborted(_presence: Presence) {
    pending::<()>().await;
}

#[inline(never)]
fn spawn_panicking(count: usize) {
    for number in 0..count {
        tokio::spawn(panicking(number, PANICKING.enter()));
    }
}

async fn panicking(number: usize, _presence: Presence) {
    if number.is_multiple_of(2) {
        yield_now().await;
    }
    panic!("task {number} panics, as it should");
}

/// Every second handle is kept.
#[inline(never)]
fn spawn_forever(count: usize, handles: &mut Vec<JoinHandle<()>>) {
    for number in 0..count {
        let handle = tokio::spawn(forever(FOREVER.enter()));
        if number.is_multiple_of(2) {
            handles.push(handle);
        }
    }
}

async fn forever(_presence: Presence) {
    pending::<()>().await;
}

/// Tasks that spawn tasks, two each.
#[inline(never)]
fn spawn_tree(count: usize) {
    for _ in 0..count {
        tokio::spawn(branch(BRANCH.enter()));
    }
}

async fn branch(_presence: Presence) {
    tokio::spawn(leaf(LEAF.enter()));
    yield_now().await;
    let _ = tokio::spawn(leaf(LEAF.enter())).await;
}

async fn leaf(_presence: Presence) {
    yield_now().await;
}

async fn fill_and_drain_set(count: usize) {
    let mut set = JoinSet::new();
    fill_set(&mut set, count);
    while set.join_next().await.is_some() {}
}

#[inline(never)]
fn fill_set(set: &mut JoinSet<()>, count: usize) {
    for _ in 0..count {
        set.spawn(set_drained(SET_DRAINED.enter()));
    }
}

async fn set_drained(_presence: Presence) {
    yield_now().await;
}

/// Dropping the set aborts its tasks.
#[inline(never)]
fn fill_and_drop_set(count: usize) {
    let mut set = JoinSet::new();
    for _ in 0..count {
        set.spawn(set_dropped(SET_DROPPED.enter()));
    }
}

async fn set_dropped(_presence: Presence) {
    pending::<()>().await;
}

#[inline(never)]
fn fill_and_keep_set(count: usize) -> JoinSet<()> {
    let mut set = JoinSet::new();
    for _ in 0..count {
        set.spawn(set_forever(SET_FOREVER.enter()));
    }
    set
}

async fn set_forever(_presence: Presence) {
    pending::<()>().await;
}

/// Blocking tasks that return or panic; every second handle is dropped.
async fn block_shortly(count: usize) {
    for number in 0..count {
        let (done, panicking) = block_twice();
        if number.is_multiple_of(2) {
            let _: (Result<(), _>, Result<(), _>) = (done.await, panicking.await);
        }
    }
}

#[inline(never)]
fn block_twice() -> (JoinHandle<()>, JoinHandle<()>) {
    let presence = BLOCKING_DONE.enter();
    let done = spawn_blocking(move || drop(presence));
    let presence = BLOCKING_PANICKING.enter();
    let panicking = spawn_blocking(move || {
        let _presence = presence;
        panic!("a blocking task panics, as it should");
    });
    (done, panicking)
}

/// Blocking tasks that are aborted in the queue, while other tasks hold every thread.
#[inline(never)]
fn block_and_abort(count: usize) -> io::Result<()> {
    let (started, starts) = mpsc::channel();
    let mut gates = Vec::new();
    for _ in 0..BLOCKING_THREADS {
        let (gate, open) = mpsc::channel::<()>();
        gates.push(gate);
        let (presence, started) = (BLOCKING_GATE.enter(), started.clone());
        spawn_blocking(move || {
            let _presence = presence;
            let _ = started.send(());
            let _ = open.recv();
        });
    }
    await_starts(&starts)?;
    for _ in 0..count {
        let presence = BLOCKING_ABORTED.enter();
        spawn_blocking(move || drop(presence)).abort();
    }
    drop(gates);
    Ok(())
}

/// Blocking tasks that never return, and behind them some that never start.
#[inline(never)]
fn block_for_ever(queued: usize) -> io::Result<()> {
    let (started, starts) = mpsc::channel();
    for _ in 0..BLOCKING_THREADS {
        let (presence, started) = (BLOCKING_FOREVER.enter(), started.clone());
        spawn_blocking(move || {
            let _presence = presence;
            let _ = started.send(());
            loop {
                std::thread::park();
            }
        });
    }
    await_starts(&starts)?;
    for _ in 0..queued {
        let presence = BLOCKING_QUEUED.enter();
        spawn_blocking(move || drop(presence));
    }
    Ok(())
}

fn await_starts(starts: &mpsc::Receiver<()>) -> io::Result<()> {
    for _ in 0..BLOCKING_THREADS {
        starts.recv().map_err(io::Error::other)?;
    }
    Ok(())
}

#[inline(never)]
fn spawn_locally(count: usize, forever: usize) -> io::Result<(Runtime, LocalSet)> {
    let runtime = Builder::new_current_thread().build()?;
    let set = LocalSet::new();
    set.block_on(&runtime, async {
        for number in 0..count {
            let done = spawn_local(local_done(LOCAL_DONE.enter()));
            let panicking = spawn_local(local_panicking(LOCAL_PANICKING.enter()));
            let aborted = spawn_local(local_aborted(LOCAL_ABORTED.enter()));
            if number.is_multiple_of(2) {
                yield_now().await;
            }
            aborted.abort();
            let _ = (done.await, panicking.await, aborted.await);
        }
        for _ in 0..forever {
            spawn_local(local_forever(LOCAL_FOREVER.enter()));
        }
        yield_now().await;
    });
    Ok((runtime, set))
}

async fn local_done(_presence: Presence) {
    yield_now().await;
}

async fn local_panicking(_presence: Presence) {
    panic!("a local task panics, as it should");
}

async fn local_aborted(_presence: Presence) {
    pending::<()>().await;
}

async fn local_forever(_presence: Presence) {
    pending::<()>().await;
}

#[inline(never)]
fn spawn_on_current(count: usize, forever: usize) -> io::Result<Runtime> {
    let runtime = Builder::new_current_thread().build()?;
    runtime.block_on(async {
        for _ in 0..count {
            tokio::spawn(current_done(CURRENT_DONE.enter()));
        }
        for _ in 0..forever {
            tokio::spawn(current_forever(CURRENT_FOREVER.enter()));
        }
        victim::settle(forever).await;
    });
    Ok(runtime)
}

async fn current_done(_presence: Presence) {
    yield_now().await;
}

async fn current_forever(_presence: Presence) {
    pending::<()>().await;
}

/// A runtime that is dropped ends its tasks.
#[inline(never)]
fn spawn_and_shut_down(count: usize) -> io::Result<()> {
    let runtime = Builder::new_current_thread().build()?;
    for _ in 0..count {
        runtime.spawn(current_shut_down(CURRENT_SHUT_DOWN.enter()));
    }
    Ok(())
}

async fn current_shut_down(_presence: Presence) {
    pending::<()>().await;
}
