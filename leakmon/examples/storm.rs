//! Spawns as fast as it can from several functions, by command: the victim of the tests of overload and restart.
//!
//! Each line of its input is a command, after which it prints its truth as of then; at the end of its input it exits.
//!
//! | command | does |
//! | --- | --- |
//! | `spawn N` | N tasks from each function, most of which end; each function leaks a few |
//! | `hold N` | N tasks that wait |
//! | `release` | lets them go |
//! | `stacks N` | one task that waits for ever from each of N different stacks |
//! | `load` | goes on spawning as `spawn` does, until the next command; prints `loading` in place of the truth |
//! | `late` | goes on spawning tasks whose handles are awaited some time after they have finished; else as `load` |
//! | anything else | nothing |

mod victim;

use serde_json::json;
use std::{
    future::pending,
    hint::black_box,
    io::{self, BufRead as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{
    runtime::Runtime,
    sync::watch::{self, Receiver},
    task::JoinHandle,
};
use victim::{Presence, Site};

/// Tasks that are alive at once and then waited for.
const BATCH: usize = 64;
/// How late a handle is awaited.
const LATE: Duration = Duration::from_millis(20);
/// One of so many tasks leaks.
const ONE_LEAKS_OF: usize = 1024;

/// A function that spawns, and the future that it spawns. Each has code of its own, so that the compiler merges none.
macro_rules! spawners {
    ($($number:literal $site:ident $spawn:ident $work:ident;)*) => {
        $(
            static $site: Site = Site::new(stringify!($work), "task", stringify!($spawn));

            #[inline(never)]
            fn $spawn(handles: &mut Vec<JoinHandle<()>>, leaks: bool) {
                handles.push(tokio::spawn($work($site.enter(), leaks)));
                black_box($number);
            }

            async fn $work(_presence: Presence, leaks: bool) {
                black_box($number);
                if leaks {
                    pending().await
                }
            }
        )*
        const SPAWNERS: [fn(&mut Vec<JoinHandle<()>>, bool); [$($number),*].len()] = [$($spawn),*];
        static SITES: [&Site; SPAWNERS.len() + 3] = [$(&$site,)* &HELD, &BOTTOM, &LOAD];
    };
}

spawners! {
    0 WORK_0 spawn_0 work_0;
    1 WORK_1 spawn_1 work_1;
    2 WORK_2 spawn_2 work_2;
    3 WORK_3 spawn_3 work_3;
    4 WORK_4 spawn_4 work_4;
    5 WORK_5 spawn_5 work_5;
    6 WORK_6 spawn_6 work_6;
    7 WORK_7 spawn_7 work_7;
}

static HELD: Site = Site::new("held", "task", "hold");
static BOTTOM: Site = Site::new("bottom", "task", "descend");
static LOAD: Site = Site::new("load", "task", "begin_load");

fn main() -> io::Result<()> {
    let runtime = victim::runtime(1)?;
    let (release, held) = watch::channel(0_u64);
    let mut load: Option<Load> = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let count = words.next().and_then(|count| count.parse().ok()).unwrap_or(0);
        if let Some(load) = load.take() {
            load.stop.store(true, SeqCst);
            runtime.block_on(load.task)?;
        }
        let _inside = runtime.enter();
        match command {
            "spawn" => runtime.block_on(spawn_all(count)),
            "hold" => hold(count, &held),
            "release" => release.send_modify(|number| *number += 1),
            "stacks" => (1..=count).for_each(descend),
            "load" | "late" => {
                load = Some(begin_load(&runtime, command == "late"));
                victim::say("loading")?;
                continue;
            }
            _ => {}
        }
        // What has been released is still on its way; everything else is settled already.
        let settled = SITES
            .iter()
            .filter(|site| command != "release" || !std::ptr::eq(**site, &HELD));
        let expected = settled.map(|site| site.live()).sum::<u64>();
        runtime.block_on(victim::settle(expected as usize));
        victim::say_truth(&SITES, json!({}))?;
    }
    std::process::exit(0)
}

static NEXT: AtomicUsize = AtomicUsize::new(0);

struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

#[inline(never)]
fn begin_load(runtime: &Runtime, late: bool) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let until = Arc::clone(&stop);
    let presence = LOAD.enter();
    let task = runtime.spawn(async move {
        let _presence = presence;
        while !until.load(SeqCst) {
            match late {
                true => await_late().await,
                false => spawn_all(BATCH).await,
            }
        }
    });
    Load { stop, task }
}

/// Spawns `count` tasks from each function, and waits for those that end.
async fn spawn_all(count: usize) {
    let mut left = count;
    while left > 0 {
        let now = left.min(BATCH);
        for spawn in SPAWNERS {
            let mut handles = Vec::with_capacity(now);
            for _ in 0..now {
                let leaks = NEXT.fetch_add(1, SeqCst) % ONE_LEAKS_OF == ONE_LEAKS_OF - 1;
                spawn(&mut handles, leaks);
                if leaks {
                    handles.pop();
                }
            }
            for handle in handles {
                // None of them panics.
                let _done = handle.await;
            }
        }
        left -= now;
    }
}

/// Spawns a task, and awaits its handle when it has long finished.
async fn await_late() {
    let mut handles = Vec::with_capacity(1);
    SPAWNERS[0](&mut handles, false);
    tokio::time::sleep(LATE).await;
    for handle in handles {
        let _done = handle.await;
    }
}

#[inline(never)]
fn hold(count: usize, held: &Receiver<u64>) {
    for _ in 0..count {
        let mut released = held.clone();
        released.mark_unchanged();
        let presence = HELD.enter();
        drop(tokio::spawn(async move {
            let _presence = presence;
            let _sender_lives = released.changed().await;
        }));
    }
}

/// Spawns from a stack that is `depth` frames deep.
#[inline(never)]
fn descend(depth: usize) {
    if depth > 1 {
        descend(depth - 1);
        // Something to do after the call, so that it is no tail call.
        black_box(depth);
        return;
    }
    let presence = BOTTOM.enter();
    drop(tokio::spawn(async move {
        let _presence = presence;
        pending::<()>().await;
    }));
}
