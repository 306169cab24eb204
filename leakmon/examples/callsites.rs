//! Spawns from as many callsites as are asked for, at a steady rate: the victim of `cargo xtask bench daemon`.
//!
//! In the first phase `--live N` tasks are born that wait for ever, by turns at `--sites N` callsites (10,000 at most). In the
//! second, `--rate N` tasks a second come and go for `--seconds N`, at the same callsites.

mod victim;

use serde_json::json;
use std::{future::Future, io, pin::Pin, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval};
use victim::{Arguments, Presence, Site};

static WAITING: Site = Site::new("waiting", "task", "site");
static PASSING: Site = Site::new("passing", "task", "site");
static SITES: [&Site; 2] = [&WAITING, &PASSING];

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;
type Spawn = fn(Task);

/// A callsite of its own for each pair of numbers.
#[inline(never)]
fn site<const HIGH: usize, const LOW: usize>(task: Task) {
    spawn_boxed(task);
    // So that no two of these functions are the same code.
    std::hint::black_box((HIGH, LOW));
}

/// The one place where a task is born, so that the program stays small; it is named as wrappers are, so its caller is the culprit.
#[inline(never)]
fn spawn_boxed(task: Task) {
    drop(tokio::spawn(task));
}

macro_rules! callsites {
    ($($high:literal)*) => { [$(callsites!(@row $high 0 1 2 3 4 5 6 7 8 9)),*] };
    (@row $high:literal $($tens:literal)*) => { [$(callsites!(@cells $high $tens 0 1 2 3 4 5 6 7 8 9)),*] };
    (@cells $high:literal $tens:literal $($ones:literal)*) => { [$(site::<$high, { $tens * 10 + $ones }> as Spawn),*] };
}

/// By hundreds, tens and ones.
static CALLSITES: [[[Spawn; 10]; 10]; 100] = callsites!(
    0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33
    34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64 65 66
    67 68 69 70 71 72 73 74 75 76 77 78 79 80 81 82 83 84 85 86 87 88 89 90 91 92 93 94 95 96 97 98 99
);

fn spawn_at(number: usize, task: Task) {
    CALLSITES[number / 100 % 100][number / 10 % 10][number % 10](task);
}

fn main() -> io::Result<()> {
    let arguments = Arguments::read(&["live", "sites", "rate", "seconds"])?;
    let sites = arguments.number("sites", 100).clamp(1, 10_000);
    let live = arguments.number("live", 0);
    let rate = arguments.number("rate", 10_000) as f64;
    let seconds = arguments.number("seconds", 10) as u64;
    let runtime = victim::runtime_of(1, 1)?;

    victim::first_phase(&arguments)?;
    runtime.block_on(async {
        for number in 0..live {
            spawn_at(number % sites, Box::pin(waiting(WAITING.enter())));
        }
        victim::settle(live).await;
    });
    victim::second_phase(&arguments, &SITES)?;
    runtime.block_on(pass(sites, rate, Duration::from_secs(seconds), live));
    victim::leave(&arguments, &SITES, json!({}))
}

/// Every millisecond as many tasks as are due by then.
async fn pass(sites: usize, rate: f64, time: Duration, live: usize) {
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let started = Instant::now();
    let mut spawned = 0;
    while started.elapsed() < time {
        let due = (started.elapsed().as_secs_f64() * rate) as usize;
        while spawned < due {
            spawn_at(spawned % sites, Box::pin(passing(PASSING.enter())));
            spawned += 1;
        }
        tick.tick().await;
    }
    victim::settle(live).await;
}

async fn waiting(_presence: Presence) {
    std::future::pending::<()>().await;
}

async fn passing(_presence: Presence) {}
