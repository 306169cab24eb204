//! A crowd: tasks of twenty types in every state that a task can be in, and the memory of many that have gone. It does what it
//! is told, line by line on standard input, and answers each line with its own numbers as one line of JSON.
//!
//! `--tasks N` is about how many it begins with; `--disguised` lets the remains of freed tasks look like tasks. The lines:
//! `count`; `churn LIVE RATE` keeps LIVE more tasks, of which RATE a second end and are replaced, some at a time, so that there
//! are never more, and ten less at most; `still` ends the churn; `more N` spawns N waiting tasks; `hold N` spawns N that finish
//! into a JoinSet; `drain` empties the JoinSet; `exec` begins anew as another crowd of ten tasks, in the same process; `ballast
//! MIB` fills that much memory; `work MS` spawns and awaits for that long; `end` ends the waiting tasks; the end of the input
//! ends it. It compiles with tokio 1.23 and everything since.

use std::{
    future::{pending, poll_fn},
    hint::black_box,
    io::{self, BufRead as _, Write as _},
    os::unix::process::CommandExt as _,
    process::Command,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::{Duration, Instant},
};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, oneshot, watch},
    task::{JoinHandle, JoinSet},
};

#[path = "crowd/churn.rs"]
mod churn;

use churn::Churn;

/// Types of which there are many; the others have a few tasks.
const MANY: usize = 17;
const BLOCKING_THREADS: usize = 2;
/// Tasks that were freed, and their memory used for something else, before anything is counted.
const GHOSTS: usize = 2_000;

/// Tasks that have been polled, or have finished, so far.
static REACHED: AtomicUsize = AtomicUsize::new(0);

/// A row of the truth, by state.
#[derive(Clone, Copy, Default)]
struct Row {
    name: &'static str,
    idle: usize,
    scheduled: usize,
    running: usize,
    unwakeable: usize,
    abortable: usize,
    held: usize,
}

/// Waits until `end` changes. Each SIZE is a type of its own size.
async fn waits<const SIZE: usize>(mut end: watch::Receiver<bool>) {
    let ballast = [1_u8; SIZE];
    REACHED.fetch_add(1, SeqCst);
    let _gone = end.changed().await;
    black_box(&ballast);
}

async fn receives(mut messages: mpsc::Receiver<u32>) {
    REACHED.fetch_add(1, SeqCst);
    black_box(messages.recv().await);
}

async fn sleeps() {
    REACHED.fetch_add(1, SeqCst);
    tokio::time::sleep(Duration::from_secs(100_000)).await;
}

async fn hangs_detached() {
    REACHED.fetch_add(1, SeqCst);
    pending::<()>().await;
}

async fn hangs_with_handle(ballast: [u64; 9]) {
    REACHED.fetch_add(1, SeqCst);
    pending::<()>().await;
    black_box(ballast);
}

/// Takes a waker, as a careless future does, and drops it.
async fn drops_its_waker(ballast: [u64; 19]) {
    poll_fn(|context| {
        drop(black_box(context.waker().clone()));
        REACHED.fetch_add(1, SeqCst);
        Poll::<()>::Pending
    })
    .await;
    black_box(ballast);
}

async fn queued(ballast: [u64; 29]) {
    black_box(ballast);
}

async fn finishes_in_set(ballast: [u64; 39]) -> usize {
    black_box(ballast).len() + REACHED.fetch_add(1, SeqCst)
}

async fn finishes_with_handle(ballast: [u64; 49]) -> usize {
    black_box(ballast).len() + REACHED.fetch_add(1, SeqCst)
}

async fn ghost(ballast: [u64; 24], end: oneshot::Receiver<()>) {
    let _gone = end.await;
    black_box(ballast);
}

/// Spawns and awaits for some time; says how often, and how long its thread had a processor meanwhile.
async fn work(milliseconds: usize) -> (usize, u64) {
    let (end, mut done) = (Instant::now() + Duration::from_millis(milliseconds as u64), 0);
    let before = processor_ns();
    while Instant::now() < end {
        for _ in 0..100 {
            done += usize::from(tokio::spawn(async {}).await.is_ok());
        }
    }
    (done, processor_ns() - before)
}

/// How long this thread has had a processor (`Documentation/scheduler/sched-stats.rst`).
fn processor_ns() -> u64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = statistics.split(' ').next().and_then(|word| word.parse().ok());
    first.unwrap_or(0)
}

/// Never gives its worker back until it is told.
async fn spins(stop: Arc<AtomicBool>) {
    REACHED.fetch_add(1, SeqCst);
    while !stop.load(SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Everything that keeps tasks as they are.
struct Crowd {
    /// One worker: what has been polled before a later task runs has given its worker back.
    runtime: Runtime,
    /// Never driven: its tasks stay in its queue.
    idle_runtime: Runtime,
    spinning: Runtime,
    churning: Runtime,
    churn: Option<Churn>,
    end: watch::Sender<bool>,
    senders: Vec<mpsc::Sender<u32>>,
    handles: Vec<JoinHandle<()>>,
    finished: Vec<JoinHandle<usize>>,
    set: JoinSet<usize>,
    gate: Arc<(Mutex<bool>, Condvar)>,
    stop: Arc<AtomicBool>,
    remains: Vec<Vec<u64>>,
    rows: Vec<Row>,
    /// How much was done when it was last told to work, and in which processor time.
    work: (usize, u64),
}

fn one_worker(blocking: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(blocking)
        .enable_all()
        .build()
}

impl Crowd {
    fn gather(tasks: usize, disguised: bool) -> io::Result<Self> {
        let each = tasks / MANY;
        let mut crowd = Self {
            runtime: one_worker(BLOCKING_THREADS)?,
            idle_runtime: Builder::new_current_thread().build()?,
            spinning: one_worker(1)?,
            churning: one_worker(1)?,
            churn: None,
            end: watch::channel(false).0,
            senders: Vec::new(),
            handles: Vec::new(),
            finished: Vec::new(),
            set: JoinSet::new(),
            gate: Arc::default(),
            stop: Arc::default(),
            remains: Vec::new(),
            rows: Vec::new(),
            work: (0, 0),
        };
        crowd.leave_ghosts(disguised);
        crowd.spawn_waiting(each.max(1));
        crowd.spawn_finished(each.max(1));
        crowd.spawn_others(each.max(1));
        Ok(crowd)
    }

    /// Tasks that end at once, and buffers of their size that are written in part: what is left of a task may look like one.
    fn leave_ghosts(&mut self, disguised: bool) {
        let ends: Vec<_> = (0..GHOSTS)
            .map(|_| {
                let (sender, end) = oneshot::channel();
                (sender, self.runtime.spawn(ghost([3; 24], end)))
            })
            .collect();
        self.runtime.block_on(async {
            for (sender, handle) in ends {
                drop(sender);
                let _ended = handle.await;
            }
        });
        for bytes in [256, 384, 512].into_iter().cycle().take(GHOSTS) {
            let mut buffer = Vec::with_capacity(bytes / 8);
            // The state words of tasks that wait, with and without a handle; or no state word at all.
            let word = if bytes == 384 { 0xc8 } else { 0x80 };
            buffer.push(if disguised { word } else { 7 });
            self.remains.push(buffer);
        }
    }

    fn row(&mut self, row: Row) {
        self.rows.push(row);
    }

    fn spawn_waiting(&mut self, each: usize) {
        macro_rules! waiting {
            ($($size:literal)*) => {{ $( self.wait::<{ $size * 64 }>(each + $size); )* }};
        }
        let before = REACHED.load(SeqCst);
        waiting!(1 2 3 4 5 6 7 8 9);
        let mut expected: usize = (1..=9).map(|size| each + size).sum();
        for _ in 0..each {
            let (sender, messages) = mpsc::channel(1);
            self.senders.push(sender);
            self.runtime.spawn(receives(messages));
            self.runtime.spawn(sleeps());
            self.runtime.spawn(hangs_detached());
            self.handles.push(self.runtime.spawn(hangs_with_handle([4; 9])));
            self.runtime.spawn(drops_its_waker([5; 19]));
        }
        expected += 5 * each;
        self.settle(before + expected);
        for name in ["receives", "sleeps"] {
            self.row(Row {
                name,
                idle: each,
                ..Row::default()
            });
        }
        for name in ["hangs_detached", "hangs_with_handle", "drops_its_waker"] {
            let abortable = if name == "hangs_with_handle" { each } else { 0 };
            self.row(Row {
                name,
                idle: each,
                unwakeable: each,
                abortable,
                ..Row::default()
            });
        }
    }

    fn wait<const SIZE: usize>(&mut self, count: usize) {
        for _ in 0..count {
            self.runtime.spawn(waits::<SIZE>(self.end.subscribe()));
        }
        self.row(Row {
            name: "waits",
            idle: count,
            ..Row::default()
        });
    }

    fn spawn_finished(&mut self, each: usize) {
        let before = REACHED.load(SeqCst);
        for _ in 0..each {
            let handle = self.runtime.handle().clone();
            self.set.spawn_on(finishes_in_set([6; 39]), &handle);
            self.finished.push(self.runtime.spawn(finishes_with_handle([7; 49])));
        }
        self.settle(before + 2 * each);
        for name in ["finishes_in_set", "finishes_with_handle"] {
            self.row(Row {
                name,
                held: each,
                ..Row::default()
            });
        }
    }

    fn spawn_others(&mut self, each: usize) {
        for _ in 0..each {
            self.idle_runtime.spawn(queued([8; 29]));
        }
        self.row(Row {
            name: "queued",
            scheduled: each,
            ..Row::default()
        });
        let before = REACHED.load(SeqCst);
        self.spinning.spawn(spins(Arc::clone(&self.stop)));
        self.row(Row {
            name: "spins",
            running: 1,
            ..Row::default()
        });
        let block = |ballast: usize, gate: Arc<(Mutex<bool>, Condvar)>| {
            move || {
                REACHED.fetch_add(ballast.min(1), SeqCst);
                let open = gate.0.lock();
                let _open = open.and_then(|open| gate.1.wait_while(open, |open| !*open));
            }
        };
        let queued = each;
        for _ in 0..BLOCKING_THREADS + queued {
            self.runtime.spawn_blocking(block(1, Arc::clone(&self.gate)));
        }
        let running = BLOCKING_THREADS;
        while REACHED.load(SeqCst) < before + 1 + running {
            std::thread::yield_now();
        }
        self.row(Row {
            name: "block",
            running,
            scheduled: queued,
            ..Row::default()
        });
    }

    /// Waits until so many tasks have been reached, and each has given the worker back.
    fn settle(&self, reached: usize) {
        while REACHED.load(SeqCst) < reached {
            std::thread::yield_now();
        }
        let _ran = self.runtime.block_on(self.runtime.spawn(async {}));
    }

    fn start_churn(&mut self, live: usize, rate: usize) {
        self.still();
        self.churn = Some(Churn::start(self.churning.handle().clone(), live, rate));
        self.rows.retain(|row| row.name != "churned");
        self.row(Row {
            name: "churned",
            idle: live,
            ..Row::default()
        });
    }

    fn still(&mut self) {
        if let Some(churn) = self.churn.take() {
            churn.stop();
            let _ran = self.churning.block_on(self.churning.spawn(async {}));
            self.rows.retain(|row| row.name != "churned");
        }
    }

    fn more(&mut self, count: usize) {
        let before = REACHED.load(SeqCst);
        for _ in 0..count {
            self.runtime.spawn(waits::<64>(self.end.subscribe()));
        }
        self.settle(before + count);
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == "waits") {
            row.idle += count;
        }
    }

    /// Spawns tasks that finish into the JoinSet.
    fn hold(&mut self, count: usize) {
        let before = REACHED.load(SeqCst);
        let handle = self.runtime.handle().clone();
        for _ in 0..count {
            self.set.spawn_on(finishes_in_set([6; 39]), &handle);
        }
        self.settle(before + count);
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == "finishes_in_set") {
            row.held += count;
        }
    }

    fn drain(&mut self) {
        let set = &mut self.set;
        self.runtime
            .block_on(async { while set.join_next().await.is_some() {} });
        self.settle(0);
        self.rows.retain(|row| row.name != "finishes_in_set");
    }

    /// Ends what waits for the end, however often `more` was called.
    fn end(&mut self) {
        let _nobody = self.end.send(true);
        while self.end.receiver_count() > 0 {
            std::thread::yield_now();
        }
        self.settle(0);
        self.rows.retain(|row| row.name != "waits");
    }

    fn answer(&self) -> io::Result<()> {
        let row = |row: &Row| {
            format!(
                "{{\"name\":\"{}\",\"idle\":{},\"scheduled\":{},\"running\":{},\"unwakeable\":{},\"abortable\":{},\"held\":{}}}",
                row.name, row.idle, row.scheduled, row.running, row.unwakeable, row.abortable, row.held
            )
        };
        let rows: Vec<String> = self.rows.iter().map(row).collect();
        let mut out = io::stdout().lock();
        // Each of the three runtimes with a worker has it as a blocking task that runs.
        writeln!(
            out,
            "{{\"workers\":3,\"work\":{},\"work_ns\":{},\"replaced\":{},\"rows\":[{}]}}",
            self.work.0,
            self.work.1,
            self.churn.as_ref().map_or(0, |churn| churn.replaced()),
            rows.join(",")
        )?;
        out.flush()
    }
}

/// Runs this program again in place of itself; comes back where that can't be done.
fn begin_anew() -> io::Error {
    match std::env::current_exe() {
        Ok(path) => Command::new(path).args(["--tasks", "10"]).exec(),
        Err(error) => error,
    }
}

pub(crate) fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tasks = match (arguments.next().as_deref(), arguments.next()) {
        (Some("--tasks"), Some(number)) => number.parse().map_err(io::Error::other)?,
        _ => 1_000,
    };
    let disguised = arguments.next().is_some_and(|word| word == "--disguised");
    let mut crowd = Crowd::gather(tasks, disguised)?;
    crowd.answer()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split(' ');
        let command = words.next();
        let mut number = || words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        match command {
            Some("count") => {}
            Some("churn") => {
                let (live, rate) = (number(), number());
                crowd.start_churn(live, rate);
            }
            Some("still") => crowd.still(),
            Some("more") => {
                let count = number();
                crowd.more(count);
            }
            Some("hold") => {
                let count = number();
                crowd.hold(count);
            }
            Some("ballast") => {
                let mebibytes = number();
                crowd.remains.extend((0..mebibytes).map(|_| vec![1_u64; 1 << 17]));
            }
            Some("work") => {
                let milliseconds = number();
                crowd.work = crowd
                    .churning
                    .block_on(crowd.churning.spawn(work(milliseconds)))
                    .unwrap_or_default();
            }
            Some("exec") => return Err(begin_anew()),
            Some("drain") => crowd.drain(),
            Some("end") => crowd.end(),
            _ => return Err(io::Error::other(format!("{line}: not known"))),
        }
        crowd.answer()?;
    }
    // A plain return would end every task first.
    std::process::exit(0)
}
