//! Leaks tasks that nothing can wake: each second one that waits for what is never done, and one that has dropped its waker.
//! Beside them are visits, which end at once, and a guard: one task that waits for ever by design.
//!
//! It leaks from the beginning of its first phase to that of the second, but `--leaks N` of each sort at least. `--pace-ms N` is
//! the time from one to the next.

mod victim;

use serde_json::json;
use std::{
    future::{pending, poll_fn},
    hint::black_box,
    io,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    task::Poll,
    time::Duration,
};
use victim::{Arguments, Presence, Site};

static GUARD: Site = Site::new("guard", "task", "start");
static ACCEPT_LOOP: Site = Site::new("accept_loop", "task", "start");
static AWAIT_NOTHING: Site = Site::new("await_nothing", "task", "accept_loop");
static LOSE_WAKER: Site = Site::new("lose_waker", "task", "accept_loop");
static VISIT: Site = Site::new("visit", "task", "accept_loop");
static SITES: [&Site; 5] = [&GUARD, &ACCEPT_LOOP, &AWAIT_NOTHING, &LOSE_WAKER, &VISIT];

static CLOSED: AtomicBool = AtomicBool::new(false);

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["leaks", "pace-ms"])?;
    let least = arguments.number("leaks", 5) as u64;
    let pace = Duration::from_millis(arguments.number("pace-ms", 1000) as u64);
    let runtime = victim::runtime(1)?;
    victim::first_phase(&arguments)?;
    let server = {
        let _inside = runtime.enter();
        start(least, pace)
    };
    victim::second_phase(&arguments, &SITES)?;
    CLOSED.store(true, SeqCst);
    runtime.block_on(async {
        server.await?;
        let left = [&GUARD, &AWAIT_NOTHING, &LOSE_WAKER].map(|site| site.live() as usize);
        victim::settle(left.iter().sum()).await;
        io::Result::Ok(())
    })?;
    victim::leave(&arguments, &SITES, json!({}))
}

#[inline(never)]
fn start(least: u64, pace: Duration) -> tokio::task::JoinHandle<()> {
    tokio::spawn(guard(GUARD.enter()));
    tokio::spawn(accept_loop(least, pace, ACCEPT_LOOP.enter()))
}

async fn guard(_presence: Presence) {
    pending::<()>().await;
}

async fn accept_loop(least: u64, pace: Duration, _presence: Presence) {
    while !CLOSED.load(SeqCst) || LOSE_WAKER.live() < least {
        tokio::spawn(visit(VISIT.enter()));
        tokio::spawn(await_nothing([3; 4], AWAIT_NOTHING.enter()));
        tokio::spawn(lose_waker([5; 8], LOSE_WAKER.enter()));
        // Spreads them as a real service sees them; nothing waits for this.
        tokio::time::sleep(pace).await;
    }
}

async fn visit(_presence: Presence) {
    tokio::task::yield_now().await;
}

async fn await_nothing(request: [u64; 4], _presence: Presence) {
    pending::<()>().await;
    black_box(request);
}

/// Takes a waker, as a careless future does, and drops it.
async fn lose_waker(request: [u64; 8], _presence: Presence) {
    poll_fn(|context| {
        drop(black_box(context.waker().clone()));
        Poll::<()>::Pending
    })
    .await;
    black_box(request);
}
