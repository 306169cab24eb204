//! The daemon's side: children are asked for, questioned, and dismissed.
//!
//! In: a job, open files, requests. Out: answers, or [`Failure`]s, counted and remembered. Every call blocks, for the time the job
//! allows at most: not for the event loop.

use super::{
    confinement::Confinement,
    failure::{Failure, OUTCOMES, Outcome},
    job::{Job, Work},
    message::{self, Order, Report},
    zygote::ZYGOTE_NAME,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{HashMap, VecDeque},
    fmt,
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::MetadataExt, net::UnixStream, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Files whose failure is remembered; beyond it the oldest is forgotten, and tried again should it be asked for.
pub const FAILURES_REMEMBERED_MAX: usize = 4_096;
/// How long the zygote may take for an order. Forking takes a millisecond, reaping up to a second.
const ORDER_TIME: Duration = Duration::from_secs(10);

/// Asks for children. Cheap to clone; may be used on any thread.
#[derive(Clone, Debug)]
pub struct Analyst(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The zygote's socket; `None` where jobs run in this process, or once the zygote is gone.
    zygote: Mutex<Option<OwnedFd>>,
    zygote_tgid: Option<u32>,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    counts: AnalystCounts,
    failures: HashMap<Subject, Failure>,
    /// The failures' subjects, oldest first.
    order: VecDeque<Subject>,
}

/// Which file, and by which job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Subject {
    job: &'static str,
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i64,
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnalystCounts {
    outcomes: [u64; OUTCOMES.len()],
    /// Questions not asked, since the same job had failed at the same file before.
    pub remembered: u64,
    /// The most memory that a child ever had, in bytes.
    pub peak_bytes: u64,
    /// How the last child was confined; `None` before there was one.
    pub confinement: Option<Confinement>,
}

impl AnalystCounts {
    /// How many analyses came out so. A child that answers several times counts once.
    #[must_use]
    pub const fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    /// All outcomes with their label values.
    pub fn outcomes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        OUTCOMES.into_iter().zip(self.outcomes)
    }
}

impl Analyst {
    /// Starts the zygote: `program` is an executable that calls [`super::serve`] when its argument zero is [`ZYGOTE_NAME`].
    ///
    /// # Errors
    /// It can't be executed.
    pub fn start(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.arg0(ZYGOTE_NAME);
        Self::start_by(command)
    }

    /// As [`Self::start`], by a command that needs other arguments.
    ///
    /// # Errors
    /// It can't be executed.
    pub fn start_by(mut command: Command) -> io::Result<Self> {
        let (own, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let limit = TimeVal::milliseconds(i64::try_from(ORDER_TIME.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&own, sockopt::ReceiveTimeout, &limit)?;
        setsockopt(&own, sockopt::SendTimeout, &limit)?;
        // It ends when the socket does, and is reaped by whoever inherits it.
        let zygote = command.stdin(Stdio::from(other)).stdout(Stdio::null()).spawn()?;
        Ok(Self::with(Some((own, zygote.id()))))
    }

    /// Runs the jobs in this process, with no protection: for tests and fuzzing.
    #[must_use]
    pub fn in_this_process() -> Self {
        Self::with(None)
    }

    fn with(zygote: Option<(OwnedFd, u32)>) -> Self {
        let (socket, zygote_tgid) = zygote.unzip();
        Self(Arc::new(Shared {
            zygote: Mutex::new(socket),
            zygote_tgid,
            notes: Mutex::default(),
        }))
    }

    /// A child for this job, which is handed these files; it is begun but not asked yet.
    ///
    /// # Errors
    /// The same job failed at the first file before, or no child can be started.
    pub fn child(&self, job: &'static Job, files: &[&File]) -> Result<Child, Failure> {
        let subject = files.first().and_then(|file| Subject::of(job, file));
        if let Some(failure) = subject.and_then(|subject| self.remembered(&subject)) {
            return Err(failure);
        }
        let begun = match self.0.zygote_tgid {
            Some(_) => self.begin(job, files),
            None => begin_here(job, files),
        };
        let link = begun.inspect_err(|failure| self.note(subject, failure))?;
        Ok(Child {
            job,
            subject,
            link: Some(link),
            answered: false,
            analyst: self.clone(),
        })
    }

    /// The process that forks the children; `None` where jobs run in this process.
    #[must_use]
    pub fn zygote_tgid(&self) -> Option<u32> {
        self.0.zygote_tgid
    }

    /// Whether a process is leakmon itself, or the one that forks its children.
    #[must_use]
    pub fn is_own(&self, tgid: u32) -> bool {
        tgid == std::process::id() || self.0.zygote_tgid == Some(tgid)
    }

    /// Asks one question of a child that is then dismissed.
    ///
    /// # Errors
    /// See [`Failure`].
    pub fn ask_once<Q: Serialize, A: DeserializeOwned>(
        &self,
        job: &'static Job,
        files: &[&File],
        question: &Q,
    ) -> Result<A, Failure> {
        self.child(job, files)?.ask(question)
    }

    /// What was counted so far.
    #[must_use]
    pub fn counts(&self) -> AnalystCounts {
        self.notes().counts.clone()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, subject: &Subject) -> Option<Failure> {
        let mut notes = self.notes();
        let failure = notes.failures.get(subject).cloned()?;
        notes.counts.remembered += 1;
        Some(failure)
    }

    /// Counts a failure, and remembers it where it is the file's.
    fn note(&self, subject: Option<Subject>, failure: &Failure) {
        let mut notes = self.notes();
        notes.counts.outcomes[failure.outcome() as usize] += 1;
        let Some(subject) = subject.filter(|_| failure.is_of_the_file()) else {
            return;
        };
        if notes.failures.insert(subject, failure.clone()).is_none() {
            notes.order.push_back(subject);
        }
        if notes.order.len() > FAILURES_REMEMBERED_MAX
            && let Some(oldest) = notes.order.pop_front()
        {
            notes.failures.remove(&oldest);
        }
    }

    fn begin(&self, job: &'static Job, files: &[&File]) -> Result<Link, Failure> {
        let (own, other) = UnixStream::pair().map_err(|error| Failure::Start(error.to_string()))?;
        let mut descriptors = vec![other.as_raw_fd()];
        descriptors.extend(files.iter().take(message::FILES_MAX - 1).map(|file| file.as_raw_fd()));
        let order = Order::Begin { job: job.name };
        match self.order(&order, &descriptors)? {
            Report::Begun { pid } => Ok(Link::Child {
                pid,
                socket: own,
                confined: false,
            }),
            Report::NotBegun { reason } => Err(Failure::Start(reason)),
            Report::Ended { .. } => Err(Failure::Gone),
        }
    }

    /// Gives the zygote an order and waits for its report. One that does not report in time is taken for gone.
    fn order(&self, order: &Order<'_>, descriptors: &[i32]) -> Result<Report, Failure> {
        let mut zygote = self.0.zygote.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = &*zygote else {
            return Err(Failure::Gone);
        };
        let report = message::send(socket.as_fd(), order, descriptors).and_then(|()| message::receive(socket.as_fd()));
        match report {
            Ok(Some((report, _))) => Ok(report),
            Ok(None) | Err(_) => {
                *zygote = None;
                tracing::error!("{}", Failure::Gone);
                Err(Failure::Gone)
            }
        }
    }
}

impl Subject {
    fn of(job: &'static Job, file: &File) -> Option<Self> {
        let metadata = file.metadata().ok()?;
        Some(Self {
            job: job.name,
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: metadata
                .mtime()
                .wrapping_mul(1_000_000_000)
                .wrapping_add(metadata.mtime_nsec()),
        })
    }
}

/// How a child is reached.
enum Link {
    Child {
        pid: i32,
        socket: UnixStream,
        /// Whether it has said that it is.
        confined: bool,
    },
    Here(Work),
}

fn begin_here(job: &Job, files: &[&File]) -> Result<Link, Failure> {
    let files = files.iter().map(|file| file.try_clone()).collect::<io::Result<_>>();
    let work = files.and_then(job.start);
    work.map(Link::Here).map_err(|error| Failure::Start(error.to_string()))
}

/// A child that answers. It ends when this is dropped.
pub struct Child {
    job: &'static Job,
    subject: Option<Subject>,
    /// `None` once it has failed.
    link: Option<Link>,
    answered: bool,
    analyst: Analyst,
}

impl fmt::Debug for Child {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Child")
            .field("job", &self.job.name)
            .finish_non_exhaustive()
    }
}

impl Child {
    /// Asks it and waits for its answer.
    ///
    /// # Errors
    /// See [`Failure`]. It answers nothing any more after one.
    pub fn ask<Q: Serialize, A: DeserializeOwned>(&mut self, question: &Q) -> Result<A, Failure> {
        let request = postcard::to_stdvec(question).map_err(|_| Failure::Answer)?;
        let bytes = match &mut self.link {
            None => return Err(Failure::Gone),
            Some(Link::Here(work)) => Ok(work(&request)),
            Some(Link::Child { socket, confined, .. }) => exchange(socket, confined, self.job, &request, &self.analyst),
        };
        let answer = match bytes {
            Ok(bytes) => postcard::from_bytes(&bytes).map_err(|_| Some(Failure::Answer)),
            Err(error) => match error.kind() {
                io::ErrorKind::TimedOut => Err(Some(Failure::Time {
                    seconds: self.job.answer_time.as_secs(),
                })),
                io::ErrorKind::InvalidData => Err(Some(Failure::Answer)),
                // It has closed its end: how it ended says why.
                _ => Err(None),
            },
        };
        match answer {
            Ok(answer) => {
                self.answered = true;
                Ok(answer)
            }
            Err(known) => Err(self.fail(known)),
        }
    }

    /// Takes back an answer that the asker could not believe.
    pub fn disbelieve(&mut self) -> Failure {
        self.fail(Some(Failure::Answer))
    }

    fn fail(&mut self, known: Option<Failure>) -> Failure {
        self.answered = false;
        let status = self.end();
        let failure = known.unwrap_or_else(|| match status {
            Some(status) => Failure::of_status(status, self.job.memory_bytes, self.job.processor_seconds),
            None => Failure::Gone,
        });
        self.analyst.note(self.subject, &failure);
        failure
    }

    /// Has it killed, and gives the status with which it ended, be it of itself.
    fn end(&mut self) -> Option<i32> {
        let Some(Link::Child { pid, .. }) = self.link.take() else {
            return None;
        };
        match self.analyst.order(&Order::End { pid }, &[]) {
            Ok(Report::Ended { status, peak_bytes }) => {
                let counts = &mut self.analyst.notes().counts;
                counts.peak_bytes = counts.peak_bytes.max(peak_bytes);
                Some(status)
            }
            _ => None,
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
        if self.answered {
            self.analyst.notes().counts.outcomes[Outcome::Done as usize] += 1;
        }
    }
}

/// Sends a request and reads the answer, all within the job's time.
fn exchange(
    socket: &UnixStream,
    confined: &mut bool,
    job: &Job,
    request: &[u8],
    analyst: &Analyst,
) -> io::Result<Vec<u8>> {
    let mut timed = Timed {
        socket,
        until: Instant::now() + job.answer_time,
    };
    socket.set_write_timeout(Some(job.answer_time))?;
    message::write_frame(&mut { socket }, request)?;
    if !*confined {
        let mut byte = [0];
        timed.read_exact(&mut byte)?;
        analyst.notes().counts.confinement = Some(Confinement::from_byte(byte[0]));
        *confined = true;
    }
    message::read_frame(&mut timed, job.answer_bytes_max)
}

/// A socket that is read until a point in time.
struct Timed<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}
