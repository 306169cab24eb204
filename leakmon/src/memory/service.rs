//! The thread that reads memory beside the loop.
//!
//! In: jobs, each about one process. Out: their outcomes, in order. It never waits for who sends, refuses what is too much,
//! and keeps of a process only where its tasks were and which are older than the attach.

use super::{
    census::{self, Census, Found, Limits, Memories, Tally},
    layout::Layouts,
    older::Older,
    program::Program,
    reader::MemoryError,
    states::{self, Group, Known, Suspects},
};
use leakmon_ebpf::abi::TargetId;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{
        Arc,
        mpsc::{Receiver as Queue, SyncSender, sync_channel},
    },
    time::Duration,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Jobs that wait, at most; one process has two at once.
pub const QUEUE_MAX: usize = 256;
/// Processes of which something is kept.
const PROCESSES_MAX: usize = 8192;
/// Tasks that are gone from memory and still counted by the probes, which are told one by one.
const GONE_MAX: usize = 4096;

/// One process and the program that it runs.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The process.
    pub target: TargetId,
    /// Its program.
    pub program: Arc<Program>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Job {
    /// Take a census.
    Census(Subject, Limits),
    /// Compare the last census with the tasks that the probes count now: header, and time of birth.
    Compare {
        /// The process.
        subject: Subject,
        /// The tasks that the probes count.
        counted: Vec<(u64, u64)>,
        /// Whether what they do not count is older than the attach; else its births went unseen.
        older: bool,
        /// How long a task must be without a waker to be unwakeable.
        confirm: Duration,
    },
    /// Count the tasks again that are older than the attach.
    Recount(Subject, Duration),
    /// Read the states of tasks.
    States(Subject, Vec<Known>, Duration),
    /// Forget a process.
    Forget(TargetId),
}

/// What came of a job.
#[derive(Debug)]
pub enum Outcome {
    /// A census without its tasks, and the layouts that its tallies refer to.
    Census(Result<(Census, Layouts), MemoryError>),
    /// How memory and probes compare.
    Compared(Result<Comparison, MemoryError>),
    /// The older tasks by type, in the order of [`Layouts::types`].
    Recounted(Result<Vec<Tally>, MemoryError>),
    /// States by group.
    States(Result<BTreeMap<u64, Group>, MemoryError>),
}

/// How memory and probes compare.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The tasks that are older than the attach, by type; empty where that was not asked for.
    pub older: Vec<Tally>,
    /// Tasks alive in memory that are neither counted nor older.
    pub unseen_births: u64,
    /// Tasks that are counted, but that are not alive in memory: header, and time of birth. At most 4096.
    pub gone: Vec<(u64, u64)>,
}

/// An outcome, the process it is about, and the bytes that were read for it.
#[derive(Debug)]
pub struct Reply {
    /// The process.
    pub target: TargetId,
    /// What came of the job.
    pub outcome: Outcome,
    /// Bytes of its memory that were read.
    pub bytes_read: u64,
}

/// The sender's end. Dropping it ends the thread once it has done what is queued.
#[derive(Debug)]
pub struct MemoryService {
    jobs: SyncSender<Job>,
    refused: u64,
}

impl MemoryService {
    /// Starts the thread.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn start() -> io::Result<(Self, Receiver<Reply>)> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        let (replies, answers) = channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("memory".to_owned())
            .spawn(move || work(&queue, &replies))?;
        Ok((Self { jobs, refused: 0 }, answers))
    }

    /// Queues a job; false where there is no room. Never waits.
    pub fn submit(&mut self, job: Job) -> bool {
        let taken = self.jobs.try_send(job).is_ok();
        self.refused += u64::from(!taken);
        taken
    }

    /// Jobs that found no room.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }
}

/// What is kept of a process.
#[derive(Default)]
struct Process {
    memories: Memories,
    /// Of the last census, until they are compared.
    tasks: Vec<Found>,
    older: Older,
    suspects: Suspects,
}

/// Does jobs until nobody sends any, or nobody takes the replies.
fn work(queue: &Queue<Job>, replies: &Sender<Reply>) {
    let mut processes: HashMap<TargetId, Process> = HashMap::new();
    while let Ok(job) = queue.recv() {
        let target = match &job {
            Job::Census(subject, _)
            | Job::Compare { subject, .. }
            | Job::Recount(subject, _)
            | Job::States(subject, _, _) => subject.target,
            Job::Forget(target) => {
                processes.remove(target);
                continue;
            }
        };
        if processes.len() >= PROCESSES_MAX && !processes.contains_key(&target) {
            processes.clear();
        }
        let mut bytes_read = 0;
        let outcome = run(job, processes.entry(target).or_default(), &mut bytes_read);
        let reply = Reply {
            target,
            outcome,
            bytes_read,
        };
        if replies.blocking_send(reply).is_err() {
            return;
        }
    }
}

fn run(job: Job, process: &mut Process, bytes_read: &mut u64) -> Outcome {
    match job {
        Job::Census(subject, limits) => Outcome::Census(take(&subject, process, limits, bytes_read)),
        Job::Compare {
            subject,
            counted,
            older,
            confirm,
        } => Outcome::Compared(compare(
            &subject,
            process,
            counted,
            older.then_some(confirm),
            bytes_read,
        )),
        Job::Recount(subject, confirm) => Outcome::Recounted(recount(&subject, process, confirm, bytes_read)),
        Job::States(subject, tasks, confirm) => Outcome::States(open(&subject).and_then(|(mut memory, layouts)| {
            let read = states::read(&mut memory, &layouts, tasks, &mut process.suspects, confirm);
            *bytes_read = memory.bytes_read();
            read
        })),
        Job::Forget(_) => Outcome::States(Ok(BTreeMap::new())),
    }
}

fn open(subject: &Subject) -> Result<(super::reader::Memory, Layouts), MemoryError> {
    subject.program.open(subject.target.tgid())
}

fn take(
    subject: &Subject,
    process: &mut Process,
    limits: Limits,
    bytes_read: &mut u64,
) -> Result<(Census, Layouts), MemoryError> {
    let (mut memory, layouts) = open(subject)?;
    let census = census::take(&mut memory, &layouts, limits, &mut process.memories, |_, _| {});
    *bytes_read = memory.bytes_read();
    let mut census = census?;
    // The caller gets numbers; the tasks themselves stay here until they are compared.
    process.tasks = std::mem::take(&mut census.tasks);
    Ok((census, layouts))
}

fn recount(
    subject: &Subject,
    process: &mut Process,
    confirm: Duration,
    bytes_read: &mut u64,
) -> Result<Vec<Tally>, MemoryError> {
    let (mut memory, layouts) = open(subject)?;
    let counted = process.older.recount(&mut memory, &layouts, confirm);
    *bytes_read = memory.bytes_read();
    counted
}

/// `older` says how long unwakeable ones are confirmed where what is not counted is older than the attach.
fn compare(
    subject: &Subject,
    process: &mut Process,
    mut counted: Vec<(u64, u64)>,
    older: Option<Duration>,
    bytes_read: &mut u64,
) -> Result<Comparison, MemoryError> {
    let (mut memory, layouts) = open(subject)?;
    // The tasks are needed this once.
    let tasks = std::mem::take(&mut process.tasks);
    counted.sort_unstable();
    let is_counted = |header: u64| counted.binary_search_by_key(&header, |(header, _)| *header).is_ok();
    let mut comparison = Comparison::default();
    // Whatever was alive at the census, is alive now, and was not counted in between, will never be counted.
    let mut uncounted = Older::of(&tasks, is_counted);
    let confirm = older.unwrap_or_default();
    if older.is_some() {
        process.older = uncounted;
        comparison.older = process.older.recount(&mut memory, &layouts, confirm)?;
    } else {
        uncounted.recount(&mut memory, &layouts, confirm)?;
        comparison.unseen_births = uncounted.without(&process.older) as u64;
    }
    comparison.gone = gone(&mut memory, &layouts, &tasks, &counted)?;
    *bytes_read = memory.bytes_read();
    Ok(comparison)
}

/// Of the tasks that are counted, by ascending header, those that are not alive in memory now.
fn gone(
    memory: &mut super::reader::Memory,
    layouts: &Layouts,
    tasks: &[Found],
    counted: &[(u64, u64)],
) -> Result<Vec<(u64, u64)>, MemoryError> {
    let alive = |header: u64| {
        let found = tasks.binary_search_by_key(&header, |task| task.header);
        found.is_ok_and(|index| tasks[index].state.is_alive())
    };
    let doubtful: Vec<(u64, u64)> = counted.iter().copied().filter(|(header, _)| !alive(*header)).collect();
    let headers: Vec<u64> = doubtful.iter().map(|(header, _)| *header).collect();
    let readings = states::read_known(memory, layouts, &headers)?;
    memory.check()?;
    let dead = doubtful.into_iter().zip(readings);
    let dead = dead.filter(|(_, reading)| !reading.is_some_and(|reading| reading.state.is_alive()));
    Ok(dead.map(|(task, _)| task).take(GONE_MAX).collect())
}
