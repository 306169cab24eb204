//! Finding the processes that run a known runtime, on a thread of its own.
//!
//! In: rules, what `/proc` lists at the start, and the kernel's word of every new executable mapping from then on (exec and
//! `dlopen` alike). Out: images with a plan, each once whatever the number of its processes, and the wanted processes that map
//! them. It attaches nothing: the event loop does. The loop never waits for it; it waits for the loop where that is busy.
//!
//! A file that was looked at is remembered by device, inode, size and time of change, so that it is looked at again only once it
//! has become another. Should records of mappings be lost, or a processor come online that tells of none, the next look at all of
//! `/proc` finds what was missed.

use crate::{
    analysis::Analyst,
    kernel::code_mappings::{CodeMapping, CodeMappings},
    targets::{
        self, AnalyseError,
        identity::{FileKey, Identity},
        plan::ProbePlan,
        processes::{self, Mapping},
        rules::Rules,
    },
};
use anyhow::Context;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

/// What waits for the event loop.
const FOUND_MAX: usize = 64;

/// Files that are remembered. Beyond it those without a runtime are forgotten, and looked at again when they are met again.
const FILES_MAX: usize = 1 << 14;

/// Mappings of one turn that are kept by process, beyond which all of `/proc` is looked at instead.
const MAPPINGS_MAX: usize = 1 << 14;

/// How long the thread waits for mappings before it looks whether it is still needed.
const WAIT: Duration = Duration::from_millis(250);

/// How often all processes are looked at though nothing was lost, and how long after the last look where something was.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
const LOOK_AFTER_LOSS: Duration = Duration::from_secs(1);

/// How long a process that calls exec may have no command line yet, and for how long it is looked at again.
const COMMAND_WAIT: Duration = Duration::from_millis(10);
const COMMAND_TRIES: u32 = 10;
/// Processes that are looked at again.
const POSTPONED_MAX: usize = 4096;

/// What was found.
#[derive(Debug)]
pub(super) enum Found {
    /// An image with a known runtime, and the wanted processes that were found to map it.
    Image {
        plan: Box<ProbePlan>,
        file: File,
        tgids: Vec<u32>,
    },
    /// A wanted process maps an image that was found before.
    Process { tgid: u32, key: FileKey },
    /// A wanted process runs a known runtime that can't be followed.
    Refused { tgid: u32, reason: String },
    /// All processes that there were at the start have been looked at.
    Complete,
}

/// What the thread counts.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Records of mappings that found no room.
    pub(super) mappings_lost: AtomicU64,
    /// Files that were forgotten since too many are remembered.
    pub(super) files_forgotten: AtomicU64,
    /// Files that were analysed.
    pub(super) analysed: AtomicU64,
}

/// The event loop's end. Dropping it ends the thread.
pub(super) struct Discovery {
    found: Receiver<Found>,
    forgotten: mpsc::Sender<FileKey>,
    pub(super) counts: Arc<Counts>,
}

impl Discovery {
    /// Starts looking.
    ///
    /// # Errors
    /// The kernel does not tell of mappings, or the thread can't be started.
    pub(super) fn start(analyst: Analyst, rules: Arc<Rules>) -> anyhow::Result<Self> {
        // Before the first look at `/proc`, so that nothing falls between the two.
        let mappings = CodeMappings::open().context(
            "the kernel does not tell of new programs: run leakmon as root or with CAP_PERFMON, or name processes and executables",
        )?;
        let (sender, found) = channel(FOUND_MAX);
        let (forgotten, to_forget) = mpsc::channel();
        let counts = Arc::new(Counts::default());
        let search = Search {
            analyst,
            rules,
            mappings,
            known: HashMap::new(),
            postponed: BTreeMap::new(),
            found: sender,
            to_forget,
            counts: Arc::clone(&counts),
        };
        std::thread::Builder::new()
            .name("discovery".to_owned())
            .spawn(move || search.run())
            .context("the thread that finds processes can't be started")?;
        Ok(Self {
            found,
            forgotten,
            counts,
        })
    }

    /// The next thing that was found; `None` once the thread has ended, which it does only by a bug. Safe to drop half-way.
    pub(super) async fn found(&mut self) -> Option<Found> {
        self.found.recv().await
    }

    /// Has a file looked at anew when it is met again, since it is no longer watched.
    pub(super) fn forget(&self, key: FileKey) {
        let _ended = self.forgotten.send(key);
    }
}

/// What is known of a file.
#[derive(Clone, Debug)]
enum Verdict {
    /// No known runtime.
    Plain,
    /// A program that was found: the probe at its entry point tells of its processes.
    Program,
    /// A library that was found: nobody but this thread tells of its processes.
    Library,
    /// A known runtime that can't be followed, and why.
    Refused(String),
}

/// The loop has gone, so there is nobody to search for.
struct NotNeeded;

struct Search {
    analyst: Analyst,
    rules: Arc<Rules>,
    mappings: CodeMappings,
    known: HashMap<FileKey, Verdict>,
    /// Processes without a command line yet, with how often they were looked at.
    postponed: BTreeMap<u32, u32>,
    found: Sender<Found>,
    to_forget: mpsc::Receiver<FileKey>,
    counts: Arc<Counts>,
}

impl Search {
    fn run(mut self) {
        let _not_needed = self.search();
    }

    fn search(&mut self) -> Result<(), NotNeeded> {
        self.look_at_all()?;
        self.send(Found::Complete)?;
        let mut looked = Instant::now();
        let mut lost = false;
        loop {
            self.mappings
                .wait(if self.postponed.is_empty() { WAIT } else { COMMAND_WAIT });
            if self.found.is_closed() {
                return Err(NotNeeded);
            }
            for key in self.to_forget.try_iter() {
                self.known.remove(&key);
            }
            lost |= self.look_at_new()?;
            if looked.elapsed() >= if lost { LOOK_AFTER_LOSS } else { LOOK_INTERVAL } {
                self.look_at_all()?;
                (looked, lost) = (Instant::now(), false);
            }
        }
    }

    fn send(&self, found: Found) -> Result<(), NotNeeded> {
        self.found.blocking_send(found).map_err(|_| NotNeeded)
    }

    /// Looks at what was mapped meanwhile. Returns whether some of it was lost.
    fn look_at_new(&mut self) -> Result<bool, NotNeeded> {
        let mut by_process: BTreeMap<u32, Vec<CodeMapping>> = BTreeMap::new();
        let mut kept = 0;
        let mut lost = self.mappings.drain(|mapping| {
            kept += 1;
            if kept <= MAPPINGS_MAX {
                by_process.entry(mapping.tgid).or_default().push(mapping);
            }
        });
        lost += (kept - kept.min(MAPPINGS_MAX)) as u64;
        self.counts.mappings_lost.fetch_add(lost, Ordering::Relaxed);
        for (tgid, tries) in std::mem::take(&mut self.postponed) {
            self.look_at(tgid, tries)?;
        }
        for (tgid, mappings) in by_process {
            let needs_no_look = |mapping: &CodeMapping| {
                let key = FileKey::of_mapping(mapping.tgid, mapping.start, mapping.end);
                matches!(
                    key.and_then(|key| self.known.get(&key)),
                    Some(Verdict::Plain | Verdict::Program)
                )
            };
            if !self.analyst.is_own(tgid) && !mappings.iter().all(needs_no_look) {
                self.look_at(tgid, 0)?;
            }
        }
        Ok(lost > 0)
    }

    /// Looks at all processes, and only then analyses what is new in them: an image is found with all its processes.
    fn look_at_all(&mut self) -> Result<(), NotNeeded> {
        let mut unknown: HashMap<FileKey, Unknown> = HashMap::new();
        for tgid in processes::tgids().unwrap_or_default() {
            if !self.analyst.is_own(tgid) {
                self.collect(tgid, COMMAND_TRIES, &mut unknown)?;
            }
        }
        self.analyse_all(unknown)
    }

    fn look_at(&mut self, tgid: u32, tries: u32) -> Result<(), NotNeeded> {
        let mut unknown = HashMap::new();
        self.collect(tgid, tries, &mut unknown)?;
        self.analyse_all(unknown)
    }

    /// Looks at the files that a process maps: known ones are told of, the others are put into `unknown`. A process that vanishes
    /// meanwhile is none of ours.
    fn collect(&mut self, tgid: u32, tries: u32, unknown: &mut HashMap<FileKey, Unknown>) -> Result<(), NotNeeded> {
        if !self.is_wanted(tgid, tries) {
            return Ok(());
        }
        let Ok(mappings) = processes::executable_mappings(tgid) else {
            return Ok(());
        };
        let program = FileKey::of_program(tgid);
        let mut seen = HashSet::new();
        for mapping in mappings.executable.iter().filter(|mapping| mapping.has_file()) {
            if !seen.insert((mapping.device, mapping.inode)) {
                continue;
            }
            let Some(key) = FileKey::of_listed(tgid, mapping) else {
                continue;
            };
            match self.known.get(&key) {
                Some(Verdict::Plain) => {}
                Some(Verdict::Program | Verdict::Library) => self.send(Found::Process { tgid, key })?,
                Some(Verdict::Refused(reason)) => {
                    let reason = reason.clone();
                    self.send(Found::Refused { tgid, reason })?;
                }
                None => {
                    let is_program = program == Some(key);
                    unknown
                        .entry(key)
                        .or_insert_with(|| Unknown::open(tgid, mapping, is_program))
                        .tgids
                        .push(tgid);
                }
            }
        }
        Ok(())
    }

    /// Whether the rules want a process. One without a command line is looked at again a little later where a rule may ask for it.
    fn is_wanted(&mut self, tgid: u32, tries: u32) -> bool {
        if self.rules.want_all() {
            return true;
        }
        let Ok(identity) = Identity::read(tgid) else {
            return false;
        };
        if identity.command.is_empty() && tries < COMMAND_TRIES && self.postponed.len() < POSTPONED_MAX {
            self.postponed.insert(tgid, tries + 1);
            return false;
        }
        identity.is_wanted(&self.rules, false)
    }

    fn analyse_all(&mut self, unknown: HashMap<FileKey, Unknown>) -> Result<(), NotNeeded> {
        for (key, unknown) in unknown {
            let Unknown {
                file,
                mapping,
                is_program,
                tgids,
            } = unknown;
            // One that can't be opened is tried again when it is met again.
            let Some(file) = file else { continue };
            self.counts.analysed.fetch_add(1, Ordering::Relaxed);
            let outcome = targets::analyse(&self.analyst, &file, &mapping.path);
            let verdict = match &outcome {
                Ok(_) if is_program => Verdict::Program,
                Ok(_) => Verdict::Library,
                Err(AnalyseError::UnsupportedRuntime {
                    runtime,
                    version,
                    reason,
                    ..
                }) => {
                    let version = version.as_deref().unwrap_or("of an unknown version");
                    Verdict::Refused(format!(
                        "uses {runtime} {version}, which can't be probed here: {reason}"
                    ))
                }
                Err(error) => {
                    tracing::debug!("not watched: {}: {error}", mapping.path.display());
                    Verdict::Plain
                }
            };
            self.remember(key, verdict.clone());
            match (outcome, verdict) {
                (Ok(mut plan), _) => {
                    plan.path = mapping.path;
                    let plan = Box::new(plan);
                    self.send(Found::Image { plan, file, tgids })?;
                }
                (Err(_), Verdict::Refused(reason)) => {
                    for tgid in tgids {
                        let reason = reason.clone();
                        self.send(Found::Refused { tgid, reason })?;
                    }
                }
                (Err(_), _) => {}
            }
        }
        Ok(())
    }

    fn remember(&mut self, key: FileKey, verdict: Verdict) {
        if self.known.len() >= FILES_MAX {
            let before = self.known.len();
            self.known.retain(|_, verdict| !matches!(verdict, Verdict::Plain));
            let forgotten = (before - self.known.len()) as u64;
            self.counts.files_forgotten.fetch_add(forgotten, Ordering::Relaxed);
        }
        if self.known.len() < FILES_MAX {
            self.known.insert(key, verdict);
        } else {
            self.counts.files_forgotten.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A file that was never looked at, with the processes that map it.
struct Unknown {
    file: Option<File>,
    mapping: Mapping,
    is_program: bool,
    tgids: Vec<u32>,
}

impl Unknown {
    fn open(tgid: u32, mapping: &Mapping, is_program: bool) -> Self {
        Self {
            file: processes::open_mapping(tgid, mapping).ok(),
            mapping: mapping.clone(),
            is_program,
            tgids: Vec::new(),
        }
    }
}
