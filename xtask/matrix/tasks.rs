//! The tasks of the matrix's victim: every way of spawning and of ending that the tokio it is compiled with has.
//!
//! In: how many of each. Out: how many tasks were born and how many of them have ended, the runtime's own workers included.
//! It compiles with tokio 1.0 and everything since; what came later is behind a feature named after it. The numbers are
//! definite: what ends does so before its runtime has been dropped, and the runtimes of what never ends are left as they are.

#![allow(unused_must_use, reason = "with old versions, `yield_now` gives a value")]

use std::{
    future::Future,
    mem::forget,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    task::{Context, Poll},
    thread,
    time::Duration,
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::oneshot,
    task::{JoinHandle, LocalSet, spawn_blocking, spawn_local, yield_now},
};

static SPAWNED: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);

const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 4;

/// A task; dropping it with the task's future or closure counts its end.
struct Presence;

impl Presence {
    #[inline(never)]
    fn enter() -> Self {
        SPAWNED.fetch_add(1, SeqCst);
        Self
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        ENDED.fetch_add(1, SeqCst);
    }
}

/// Spawns `count` of each sort that ends and `forever` of each that doesn't. Tasks born, and of them ended.
pub fn run(count: usize, forever: usize) -> (u64, u64) {
    end_all(count);
    end_all_on_one_thread(count);
    leave_all(forever);
    leave_all_on_one_thread(forever);
    (SPAWNED.load(SeqCst), ENDED.load(SeqCst))
}

/// Each worker thread is a blocking task of tokio's own.
fn workers() -> Runtime {
    SPAWNED.fetch_add(WORKERS as u64, SeqCst);
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .expect("a runtime")
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

fn end_all(count: usize) {
    let runtime = workers();
    let mut kept = Vec::new();
    for number in 0..count {
        kept.push(runtime.spawn(from_outside(number, Presence::enter())));
    }
    runtime.block_on(async {
        for _ in 0..count {
            drop(tokio::spawn(dropped(Presence::enter())));
            kept.push(tokio::spawn(kept_handle(Presence::enter())));
        }
        for number in 0..count {
            let joined = tokio::spawn(joined(number, Presence::enter())).await;
            assert!(joined.is_ok_and(|joined| joined == format!("task {number}")));
        }
        for _ in 0..count {
            tokio::spawn(aborted(Presence::enter())).abort();
            let (sender, end) = oneshot::channel();
            tokio::spawn(told_to_end(end, Presence::enter()));
            let _ = sender.send(());
            tokio::spawn(parent(Presence::enter()));
        }
        shapes(count).await;
        block(count).await;
        #[cfg(panic = "unwind")]
        panics(count).await;
        #[cfg(feature = "join_set")]
        sets(count).await;
        #[cfg(feature = "task_builder")]
        named(count).await;
        for _ in 0..count {
            tokio::spawn(shut_down(Presence::enter()));
        }
    });
    // Waits for the workers and for blocking tasks, and cancels what has not ended.
    drop(runtime);
    ENDED.fetch_add(WORKERS as u64, SeqCst);
    drop(kept);
}

async fn from_outside(number: usize, _presence: Presence) {
    if number % 2 == 0 {
        yield_now().await;
    }
}

async fn dropped(_presence: Presence) {
    yield_now().await;
}

async fn kept_handle(_presence: Presence) {
    yield_now().await;
}

async fn joined(number: usize, _presence: Presence) -> String {
    yield_now().await;
    format!("task {number}")
}

async fn aborted(_presence: Presence) {
    never().await;
}

async fn told_to_end(end: oneshot::Receiver<()>, _presence: Presence) {
    let _ = end.await;
}

async fn shut_down(_presence: Presence) {
    never().await;
}

async fn parent(_presence: Presence) {
    tokio::spawn(child(Presence::enter()));
    yield_now().await;
    let _ = tokio::spawn(child(Presence::enter())).await;
}

async fn child(_presence: Presence) {
    yield_now().await;
}

/// `std::future::pending`, which old compilers and old tokios have too, as a type of our own.
struct Never;

impl Future for Never {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

async fn never() {
    Never.await;
}

/// A future that is aligned to two cache lines.
#[repr(align(256))]
struct Aligned(Presence);

impl Future for Aligned {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }
}

/// A future of no size: its presence is in no field.
struct Empty;

impl Future for Empty {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        ENDED.fetch_add(1, SeqCst);
        Poll::Ready(())
    }
}

/// Futures and outputs of unusual sizes.
async fn shapes(count: usize) {
    for number in 0..count {
        tokio::spawn(Aligned(Presence::enter()));
        SPAWNED.fetch_add(1, SeqCst);
        let _ = tokio::spawn(Empty).await;
        let large = tokio::spawn(large([number as u8; 20_000], Presence::enter()));
        assert!(large.await.is_ok_and(|sum| sum == 20_000 * (number as u8 as u64)));
        let large = tokio::spawn(large_output(number as u8, Presence::enter()));
        assert!(large.await.is_ok_and(|output| output[3999] == number as u8));
        let boxed: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(child(Presence::enter()));
        tokio::spawn(boxed);
        let _ = generic(number, Presence::enter()).await;
        let _ = generic(String::new(), Presence::enter()).await;
    }
}

async fn large(bytes: [u8; 20_000], _presence: Presence) -> u64 {
    yield_now().await;
    bytes.iter().map(|byte| u64::from(*byte)).sum()
}

async fn large_output(byte: u8, _presence: Presence) -> [u8; 4000] {
    yield_now().await;
    [byte; 4000]
}

fn generic<T: Send + 'static>(value: T, presence: Presence) -> JoinHandle<T> {
    tokio::spawn(async move {
        let _presence = presence;
        yield_now().await;
        value
    })
}

/// Blocking tasks: joined, dropped, aborted while queued, and the one behind each call of `tokio::fs`.
async fn block(count: usize) {
    for number in 0..count {
        let presence = Presence::enter();
        drop(spawn_blocking(move || drop(presence)));
        let presence = Presence::enter();
        let joined = spawn_blocking(move || {
            let _presence = presence;
            number
        });
        let presence = Presence::enter();
        spawn_blocking(move || {
            thread::yield_now();
            drop(presence);
        })
        .abort();
        assert!(joined.await.is_ok_and(|joined| joined == number));
        SPAWNED.fetch_add(1, SeqCst);
        assert!(tokio::fs::metadata("/").await.is_ok());
        ENDED.fetch_add(1, SeqCst);
    }
    // What is still queued when the runtime goes would be dropped unrun.
    for _ in 0..BLOCKING_THREADS {
        let presence = Presence::enter();
        let last = spawn_blocking(move || {
            thread::sleep(Duration::from_millis(1));
            drop(presence);
        });
        let _ = last.await;
    }
}

#[cfg(panic = "unwind")]
async fn panics(count: usize) {
    // The panics are meant.
    std::panic::set_hook(Box::new(|_| {}));
    for number in 0..count {
        tokio::spawn(panicking(number, Presence::enter()));
        let presence = Presence::enter();
        let blocking = spawn_blocking(move || {
            let _presence = presence;
            panic!("a blocking task panics, as it should");
        });
        let blocking: Result<(), _> = blocking.await;
        assert!(blocking.is_err());
    }
}

#[cfg(panic = "unwind")]
async fn panicking(number: usize, _presence: Presence) {
    if number % 2 == 0 {
        yield_now().await;
    }
    panic!("task {number} panics, as it should");
}

/// `JoinSet` is there since tokio 1.21.
#[cfg(feature = "join_set")]
async fn sets(count: usize) {
    let mut drained = tokio::task::JoinSet::new();
    let mut dropped = tokio::task::JoinSet::new();
    for number in 0..count {
        drained.spawn(joined(number, Presence::enter()));
        dropped.spawn(aborted(Presence::enter()));
    }
    while drained.join_next().await.is_some() {}
    dropped.spawn_on(aborted(Presence::enter()), &tokio::runtime::Handle::current());
}

/// `task::Builder` is there with `tokio_unstable`.
#[cfg(feature = "task_builder")]
async fn named(count: usize) {
    for _ in 0..count {
        let named = tokio::task::Builder::new().name("named").spawn(child(Presence::enter()));
        assert!(named.is_ok());
        let presence = Presence::enter();
        let blocking = tokio::task::Builder::new().spawn_blocking(move || drop(presence));
        let _ = blocking.expect("a task").await;
    }
}

fn end_all_on_one_thread(count: usize) {
    let runtime = one_thread();
    let set = LocalSet::new();
    set.block_on(&runtime, async {
        for _ in 0..count {
            tokio::spawn(dropped(Presence::enter()));
            let local = spawn_local(child(Presence::enter()));
            let stopped = spawn_local(aborted(Presence::enter()));
            yield_now().await;
            stopped.abort();
            let _ = (local.await, stopped.await);
            spawn_local(shut_down(Presence::enter()));
            tokio::spawn(shut_down(Presence::enter()));
        }
        #[cfg(panic = "unwind")]
        for number in 0..count {
            let _ = spawn_local(panicking(number, Presence::enter())).await;
        }
    });
    drop(set);
    drop(runtime);
}

async fn lasting(_presence: Presence) {
    never().await;
}

async fn lasting_in_another_way(presence: Presence) -> u64 {
    never().await;
    drop(presence);
    1
}

fn leave_all(forever: usize) {
    let runtime = workers();
    let mut handles = Vec::new();
    runtime.block_on(async {
        for _ in 0..forever {
            drop(tokio::spawn(lasting(Presence::enter())));
            handles.push(tokio::spawn(lasting_in_another_way(Presence::enter())));
        }
        for _ in 0..BLOCKING_THREADS {
            let presence = Presence::enter();
            spawn_blocking(move || {
                let _presence = presence;
                loop {
                    thread::park();
                }
            });
        }
        #[cfg(feature = "join_set")]
        {
            let mut set = tokio::task::JoinSet::new();
            for _ in 0..forever {
                set.spawn(lasting(Presence::enter()));
            }
            forget(set);
        }
    });
    forget((runtime, handles));
}

fn leave_all_on_one_thread(forever: usize) {
    let runtime = one_thread();
    let set = LocalSet::new();
    set.block_on(&runtime, async {
        for _ in 0..forever {
            tokio::spawn(lasting(Presence::enter()));
            spawn_local(lasting(Presence::enter()));
            spawn_local(lasting_in_another_way(Presence::enter()));
        }
        yield_now().await;
    });
    forget((runtime, set));
}
