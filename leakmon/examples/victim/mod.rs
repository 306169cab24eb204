//! What every victim shares: its own record of its tasks, its phases, its command line.
//!
//! In: tasks that enter a [`Site`] when they are spawned and leave it when their future is dropped. Out: one line of JSON
//! on standard output, the truth that leakmon's numbers are compared with. It knows nothing of leakmon.
//!
//! A victim works in two phases. With `--wait` it prints `ready` and waits for a line of input before each of them, and
//! after the truth it waits for the end of its input, so that an observer can attach in between and look at the end.
//! It leaves by [`leave`], without shutting its runtimes down: what is alive in the truth is alive when it exits.

// Each victim uses its own part of this module.
#![allow(dead_code)]

use serde_json::{Value, json};
use std::{
    io::{self, BufRead as _, Read as _, Write as _},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};
use tokio::runtime::{Builder, Handle, Runtime};

/// Worker threads of a victim's runtime. Each is a blocking task of tokio's own, which leakmon counts as well.
pub(crate) const WORKERS: usize = 2;

static PHASE: AtomicUsize = AtomicUsize::new(0);

/// One async function (or blocking closure) whose tasks are counted.
pub(crate) struct Site {
    name: &'static str,
    kind: &'static str,
    spawned_by: &'static str,
    /// By the phase of the task's birth.
    spawned: [AtomicU64; 2],
    /// By the phase of the task's birth.
    ended: [AtomicU64; 2],
    /// Tasks of the first phase that had ended when the second began.
    ended_before: AtomicU64,
    /// An address in the machine code that spawned a task last, 0 before.
    spawned_at: AtomicUsize,
}

impl Site {
    /// A site named as its function, of leakmon's kind `kind`, spawned in the function `spawned_by`.
    pub(crate) const fn new(name: &'static str, kind: &'static str, spawned_by: &'static str) -> Self {
        Self {
            name,
            kind,
            spawned_by,
            spawned: [const { AtomicU64::new(0) }; 2],
            ended: [const { AtomicU64::new(0) }; 2],
            ended_before: AtomicU64::new(0),
            spawned_at: AtomicUsize::new(0),
        }
    }

    /// Counts a task that is about to be spawned; the future or closure owns what is returned.
    ///
    /// Inlined in every build, so that the address it notes is one of the function that spawns, or of that into which
    /// the compiler has inlined the function that spawns.
    #[inline(always)]
    pub(crate) fn enter(&'static self) -> Presence {
        self.spawned_at.store(here(), SeqCst);
        self.count()
    }

    #[inline(never)]
    fn count(&'static self) -> Presence {
        let phase = PHASE.load(SeqCst);
        self.spawned[phase].fetch_add(1, SeqCst);
        Presence { site: self, phase }
    }

    /// Tasks alive.
    pub(crate) fn live(&self) -> u64 {
        let counts = self.counts();
        counts.spawned - counts.ended
    }

    fn counts(&self) -> Counts {
        let [old, new] = [0, 1].map(|phase| (self.spawned[phase].load(SeqCst), self.ended[phase].load(SeqCst)));
        Counts {
            spawned: old.0 + new.0,
            ended: old.1 + new.1,
            new_spawned: new.0,
            new_ended: new.1,
            older_ended: old.1 - self.ended_before.load(SeqCst),
        }
    }
}

/// The address of the code into which this is inlined.
#[inline(always)]
fn here() -> usize {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction only reads its own address.
    unsafe {
        std::arch::asm!("lea {}, [rip]", out(reg) address, options(nomem, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction only reads its own address.
    unsafe {
        std::arch::asm!("adr {}, .", out(reg) address, options(nomem, nostack, preserves_flags));
    }
    address
}

/// Where the code at an address is in its file, by this process's own mappings.
fn file_offset(address: usize) -> io::Result<Option<u64>> {
    let hexadecimal = |word: Option<&str>| u64::from_str_radix(word.unwrap_or_default(), 16).unwrap_or_default();
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        // `START-END PERMISSIONS OFFSET …`, proc_pid_maps(5).
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next().and_then(|range| range.split_once('-')).unwrap_or_default();
        let (start, end) = (hexadecimal(Some(start)), hexadecimal(Some(end)));
        if (start..end).contains(&(address as u64)) {
            return Ok(Some(address as u64 - start + hexadecimal(words.nth(1))));
        }
    }
    Ok(None)
}

/// A task that has been spawned; dropping it counts its end.
pub(crate) struct Presence {
    site: &'static Site,
    phase: usize,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.site.ended[self.phase].fetch_add(1, SeqCst);
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    spawned: u64,
    ended: u64,
    new_spawned: u64,
    new_ended: u64,
    older_ended: u64,
}

impl Counts {
    fn add(self, other: Self) -> Self {
        Self {
            spawned: self.spawned + other.spawned,
            ended: self.ended + other.ended,
            new_spawned: self.new_spawned + other.new_spawned,
            new_ended: self.new_ended + other.new_ended,
            older_ended: self.older_ended + other.older_ended,
        }
    }

    fn json(self) -> Value {
        json!({
            "spawned": self.spawned,
            "ended": self.ended,
            "live": self.spawned - self.ended,
            "phase2": {
                "spawned": self.new_spawned,
                "ended": self.new_ended,
                "live": self.new_spawned - self.new_ended,
                "older_ended": self.older_ended,
            },
        })
    }
}

/// Worker threads of all runtimes that were made.
static WORKERS_STARTED: AtomicUsize = AtomicUsize::new(0);

/// A multi-threaded runtime with [`WORKERS`] workers, and `blocking_threads` threads for blocking tasks at most.
pub(crate) fn runtime(blocking_threads: usize) -> io::Result<Runtime> {
    runtime_of(WORKERS, blocking_threads)
}

/// The same with `workers` workers.
pub(crate) fn runtime_of(workers: usize, blocking_threads: usize) -> io::Result<Runtime> {
    WORKERS_STARTED.fetch_add(workers, SeqCst);
    Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(blocking_threads)
        .enable_all()
        .build()
}

/// Waits until exactly `live` tasks of the current runtime are left. Whoever may still spawn must be one of the tasks that
/// end, else the count could pass by `live` too early.
///
/// tokio takes a task off that count after it has turned it COMPLETE, on the same thread: what is off the count has
/// passed every instruction that leakmon may have probed. A dropped future or a joined handle alone do not prove that.
pub(crate) async fn settle(live: usize) {
    while Handle::current().metrics().num_alive_tasks() != live {
        tokio::task::yield_now().await;
    }
}

/// Begins the first phase: with `--wait`, only when the observer says so.
pub(crate) fn first_phase(arguments: &Arguments) -> io::Result<()> {
    await_observer(arguments)
}

/// Begins the second phase. No task may be between its birth or its end and the count of it.
pub(crate) fn second_phase(arguments: &Arguments, sites: &[&Site]) -> io::Result<()> {
    await_observer(arguments)?;
    for site in sites {
        site.ended_before.store(site.ended[0].load(SeqCst), SeqCst);
    }
    PHASE.store(1, SeqCst);
    Ok(())
}

fn await_observer(arguments: &Arguments) -> io::Result<()> {
    if arguments.wait {
        say("ready")?;
        io::stdin().lock().read_line(&mut String::new())?;
    }
    Ok(())
}

/// Prints the truth, with `extra` fields, and exits with code 0, leaving every task as it is.
///
/// A plain return from `main` would drop the runtime, which ends every task before the process does.
pub(crate) fn leave(arguments: &Arguments, sites: &[&Site], extra: Value) -> io::Result<()> {
    say_truth(sites, extra)?;
    if arguments.wait {
        io::stdin().lock().read_to_end(&mut Vec::new())?;
    }
    std::process::exit(0)
}

/// Prints the truth as of now, with `extra` fields.
pub(crate) fn say_truth(sites: &[&Site], extra: Value) -> io::Result<()> {
    let mut total = Counts::default();
    let mut truth = Vec::new();
    for site in sites {
        let counts = site.counts();
        total = total.add(counts);
        let mut row = json!({ "site": site.name, "kind": site.kind, "spawned_by": site.spawned_by });
        merge(&mut row, counts.json());
        merge(
            &mut row,
            json!({ "spawned_at": file_offset(site.spawned_at.load(SeqCst))? }),
        );
        truth.push(row);
    }
    let mut line = json!({ "truth": truth, "total": total.json(), "runtime_tasks": WORKERS_STARTED.load(SeqCst) });
    merge(&mut line, extra);
    say(&line.to_string())
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// Prints a line at once.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

/// `--wait` and `--NAME NUMBER`.
pub(crate) struct Arguments {
    wait: bool,
    numbers: Vec<(String, usize)>,
}

impl Arguments {
    /// Reads the command line; anything unknown or without a number is an error.
    pub(crate) fn read(known: &[&str]) -> io::Result<Self> {
        let mut arguments = Self {
            wait: false,
            numbers: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").unwrap_or_default();
            if name == "wait" {
                arguments.wait = true;
                continue;
            }
            match words.next().and_then(|number| number.parse().ok()) {
                Some(number) if known.contains(&name) => arguments.numbers.push((name.to_owned(), number)),
                _ => {
                    return Err(io::Error::other(format!(
                        "{word}: known are --wait and, with a number, {known:?}"
                    )));
                }
            }
        }
        Ok(arguments)
    }

    /// The number given as `--NAME`, or the default.
    pub(crate) fn number(&self, name: &str, default: usize) -> usize {
        let given = self.numbers.iter().rfind(|(known, _)| known == name);
        given.map_or(default, |(_, number)| *number)
    }
}
