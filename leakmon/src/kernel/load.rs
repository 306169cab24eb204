//! Loading the BPF programs, and the one handle to all that they keep.
//!
//! In: the embedded object and [`Settings`]. Out: [`Kernel`]. Attaching is in `attach`, the tables' form in `tables`.

use super::{
    attach::Links,
    btf::{BtfError, KernelOffsets},
    object::{self, ObjectError},
    pins::{self, PinError, Pins},
    ring::EventRing,
    sample::{self, SampleMaps},
    settings::Settings,
    sweep::{Purge, SWEEP},
    tables::Table,
    unwind::TableMaps,
};
use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapError, PerCpuArray, RingBuf},
    programs::{ProgramError, RawTracePoint, TestRun, UProbe},
};
use leakmon_ebpf::abi::{
    Ages, CountKey, CountValue, LIVE_FIRST_ENTRIES_MAX, Loss, PinnedImage, Stack, TargetEntry, TargetId, Totals,
};
use leakmon_ebpf::rows::ProcessMappings;
use std::collections::BTreeMap;
use tokio::io::{Interest, unix::AsyncFd};

/// Why the BPF side can't be used. Every one means that this host can't be probed (exit code 4).
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A capability is missing.
    #[error("needs {0}: run leakmon as root, or give it that capability")]
    Capability(&'static str),
    /// There are no programs to load.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel's layout can't be known.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// The object could not be loaded.
    #[error("the kernel refused leakmon's BPF programs or maps: {0}: `leakmon doctor` says what is missing")]
    Load(#[from] EbpfError),
    /// A program was refused.
    #[error("the kernel refused the BPF program `{0}`: {1}: `leakmon doctor` says what is missing")]
    Program(&'static str, ProgramError),
    /// The object lacks a program.
    #[error("the BPF object has no program `{0}`: run `cargo xtask build-ebpf` and build leakmon again")]
    NoProgram(&'static str),
    /// The object lacks a map.
    #[error("the BPF object has no map `{0}`: run `cargo xtask build-ebpf` and build leakmon again")]
    NoMap(&'static str),
    /// A map is not of the expected form.
    #[error("the BPF map `{0}` can't be used: {1}")]
    Map(&'static str, MapError),
    /// A thread was named where a process is needed.
    #[error("{tid} is a thread of process {tgid}: give -p {tgid}")]
    Thread {
        /// What was named.
        tid: u32,
        /// Its process.
        tgid: u32,
    },
    /// There is no room for another target.
    #[error("{0} processes are watched already, which is the bound")]
    TooManyTargets(u32),
    /// No probe site of an image could be attached.
    #[error("{path}: no probe could be attached: {reason}")]
    NoSite {
        /// The image.
        path: String,
        /// What the first site was refused for.
        reason: String,
    },
    /// Nothing can be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The ring can't be waited on.
    #[error("the event ring can't be waited on: {0}")]
    Ring(std::io::Error),
}

/// The tracepoint programs and where each is attached.
const TRACEPOINTS: [(&str, &str); 3] = [
    ("process_fork", "task_newtask"),
    ("process_exec", "sched_process_exec"),
    ("process_exit", "sched_process_exit"),
];

/// Programs that user space runs, attached to nothing.
const EXECUTED: [&str; 4] = [SWEEP, super::threads::FOUND, sample::PROGRAM, super::exclusion::EXCLUDE];

/// Loaded programs, their maps and their links. Dropping it detaches everything.
pub struct Kernel {
    pub(super) ebpf: Ebpf,
    /// By image number.
    pub(super) links: BTreeMap<u32, Links>,
    pub(super) settings: Settings,
    pub(super) pins: Option<Pins>,
    /// Whether the maps have what an earlier daemon counted.
    pub(super) resumed: bool,
    pub(super) images: Table<u32, PinnedImage, 4, { size_of::<PinnedImage>() }>,
    pub(super) counts: Table<CountKey, CountValue, 16, { size_of::<CountValue>() }>,
    pub(super) ages: Table<CountKey, Ages, 16, { size_of::<Ages>() }>,
    pub(super) stacks: Table<u64, Stack, 8, { size_of::<Stack>() }>,
    pub(super) targets: Table<u32, TargetEntry, 4, { size_of::<TargetEntry>() }>,
    pub(super) totals: Table<u64, Totals, 8, { size_of::<Totals>() }>,
    watched: Table<u32, u32, 4, 4>,
    pub(super) purged: Table<u64, u32, 8, 4>,
    pub(super) mappings: Table<u32, ProcessMappings, 4, { size_of::<ProcessMappings>() }>,
    pub(super) tables: TableMaps,
    pub(super) samples: SampleMaps,
    loss: PerCpuArray<MapData, u64>,
    pub(super) sweeps: u64,
    pub(super) purge: Purge,
}

impl Kernel {
    /// Loads the embedded object and attaches the process tracepoints. No probe site is attached yet. With `pins`, maps and
    /// links are those that an earlier daemon left, where it was this leakmon with these settings.
    ///
    /// # Errors
    /// [`KernelError`] where this host can't be probed.
    pub fn load(settings: Settings, pins: Option<Pins>) -> Result<(Self, EventRing), KernelError> {
        super::host::require_capabilities()?;
        let resumed = match &pins {
            Some(pins) => pins.adopt(&settings)?,
            None => false,
        };
        super::host::raise_open_files();
        let mut ebpf = load_ebpf(settings, pins.as_ref())?;
        let meta = ebpf.take_map("META").ok_or(KernelError::NoMap("META"))?;
        if settings.debug {
            forward_logs(&mut ebpf);
        }
        let ring = ebpf.take_map("EVENTS").ok_or(KernelError::NoMap("EVENTS"))?;
        let ring = RingBuf::try_from(ring).map_err(|error| KernelError::Map("EVENTS", error))?;
        let loss = ebpf.take_map("LOSS").ok_or(KernelError::NoMap("LOSS"))?;
        let mut kernel = Self {
            images: Table::take(&mut ebpf, "IMAGES")?,
            counts: Table::take(&mut ebpf, "COUNTS")?,
            ages: Table::take(&mut ebpf, "AGES")?,
            stacks: Table::take(&mut ebpf, "STACKS")?,
            targets: Table::take(&mut ebpf, "TARGETS")?,
            totals: Table::take(&mut ebpf, "TOTALS")?,
            watched: Table::take(&mut ebpf, "WATCHED")?,
            purged: Table::take(&mut ebpf, "PURGED")?,
            mappings: Table::take(&mut ebpf, "MAPPINGS")?,
            tables: TableMaps::take(&mut ebpf)?,
            samples: SampleMaps::take(&mut ebpf)?,
            loss: PerCpuArray::try_from(loss).map_err(|error| KernelError::Map("LOSS", error))?,
            links: BTreeMap::new(),
            ebpf,
            settings,
            // Higher than any number of an earlier daemon's, which counted from its own time.
            sweeps: super::clock::monotonic_ns(),
            purge: Purge::default(),
            pins,
            resumed,
        };
        kernel.resume_purge();
        pins::complete(meta, &settings).map_err(|error| KernelError::Map("META", error))?;
        Ok((kernel, EventRing::new(ring)?))
    }

    /// Loads everything and lets it go again: says whether this kernel accepts the programs.
    ///
    /// # Errors
    /// [`KernelError`] where it does not.
    pub(super) fn load_for_trial(settings: Settings) -> Result<(), KernelError> {
        load_ebpf(settings, None).map(drop)
    }

    /// Watches a process by its number; `flags` are [`leakmon_ebpf::abi::FOLLOW`] and [`leakmon_ebpf::abi::HOLD`].
    ///
    /// # Errors
    /// Where too many processes are watched already.
    pub fn watch(&mut self, tgid: u32, flags: u32) -> Result<(), KernelError> {
        self.watched
            .insert(&tgid, &flags)
            .map_err(|error| KernelError::Map("WATCHED", error))
    }

    /// Stops watching a process. What was counted stays.
    pub fn unwatch(&mut self, tgid: u32) {
        self.watched.remove(&tgid);
    }

    /// Whether a process is watched by its number.
    #[must_use]
    pub fn is_watched(&self, tgid: u32) -> bool {
        self.watched.get(&tgid).is_some()
    }

    /// The processes that are watched by number, with their flags.
    #[must_use]
    pub fn watched(&self) -> Vec<(u32, u32)> {
        self.watched.entries()
    }

    /// Forgets that a process was to be watched, since it has gone.
    pub fn disown(&mut self, tgid: u32) {
        self.watched.remove(&tgid);
        self.targets.remove(&tgid);
        self.mappings.remove(&tgid);
    }

    /// Takes a target out whose process has gone, when nobody saw it go.
    pub fn end_target(&mut self, target: TargetId) {
        let tgid = target.tgid();
        // Whoever has the number by now keeps its entry.
        if self.target(tgid).is_some_and(|entry| entry.target == target.0) {
            self.targets.remove(&tgid);
            self.mappings.remove(&tgid);
        }
    }

    /// Stops watching processes by number, so that none is held that nobody would let go.
    pub fn unwatch_all(&mut self) {
        for (tgid, _) in self.watched() {
            self.watched.remove(&tgid);
        }
    }

    /// Makes a process a target from `now_ns` on, unless a hit has done so already.
    ///
    /// # Errors
    /// Where there are too many targets.
    pub fn begin_target(&mut self, tgid: u32, now_ns: u64) -> Result<TargetId, KernelError> {
        let target = TargetId::new(tgid, now_ns);
        let entry = TargetEntry::new(target, now_ns);
        if self.targets.insert_new(&tgid, &entry).is_ok() {
            self.totals
                .insert(&target.0, &Totals::NONE)
                .map_err(|error| KernelError::Map("TOTALS", error))?;
            return Ok(target);
        }
        let stored = self
            .targets
            .get(&tgid)
            .ok_or(KernelError::TooManyTargets(self.targets.capacity()))?;
        Ok(TargetId(stored.target))
    }

    /// All counters.
    #[must_use]
    pub fn counts(&self) -> Vec<(CountKey, CountValue)> {
        self.counts.entries()
    }

    /// How old the live tasks of all stacks were at the sweep that each entry names.
    #[must_use]
    pub fn ages(&self) -> Vec<(CountKey, Ages)> {
        self.ages.entries()
    }

    /// A stack by its key; `None` where the table was full when it was met.
    #[must_use]
    pub fn stack(&self, id: u64) -> Option<Stack> {
        self.stacks.get(&id)
    }

    /// Who a process is now.
    #[must_use]
    pub fn target(&self, tgid: u32) -> Option<TargetEntry> {
        self.targets.get(&tgid)
    }

    /// What is counted per target and not per stack.
    #[must_use]
    pub fn totals(&self, target: TargetId) -> Option<Totals> {
        self.totals.get(&target.0)
    }

    /// What the programs could not do, in the order of [`Loss::ALL`].
    #[must_use]
    pub fn loss(&self) -> [u64; Loss::ALL.len()] {
        let of_reason = |reason: Loss| {
            self.loss
                .get(&(reason as u32), 0)
                .map_or(0, |per_processor| per_processor.iter().sum())
        };
        Loss::ALL.map(of_reason)
    }

    /// Runs a program that is attached to nothing, with these arguments.
    pub(super) fn execute(&mut self, name: &'static str, arguments: &[u64]) -> Result<(), KernelError> {
        let program: &mut RawTracePoint = program(&mut self.ebpf, name)?;
        let mut options = aya::programs::RawTracePointRunOptions::new();
        for (slot, argument) in options.args.iter_mut().zip(arguments) {
            *slot = *argument;
        }
        program
            .test_run(options)
            .map_err(|error| KernelError::Program(name, error))?;
        Ok(())
    }

    /// Capacities of the maps that fill up with use.
    #[must_use]
    pub const fn capacities(&self) -> [(&'static str, u32); 4] {
        [
            ("live", self.settings.live_capacity()),
            ("counts", self.counts.capacity()),
            ("stacks", self.stacks.capacity()),
            ("targets", self.targets.capacity()),
        ]
    }
}

fn load_ebpf(settings: Settings, pins: Option<&Pins>) -> Result<Ebpf, KernelError> {
    let mut ebpf = load_object(object::embedded()?, settings, KernelOffsets::of_running_kernel()?, pins)?;
    load_programs(&mut ebpf, pins)?;
    Ok(ebpf)
}

fn load_object(
    object: &[u8],
    settings: Settings,
    offsets: KernelOffsets,
    pins: Option<&Pins>,
) -> Result<Ebpf, KernelError> {
    let flag = |set: bool| u32::from(set);
    let (walk, remember) = (flag(settings.walk_stacks), flag(settings.remember_walks));
    let (trace, debug) = (flag(settings.trace), flag(settings.debug));
    let live_first = settings.live_entries_max.min(LIVE_FIRST_ENTRIES_MAX);
    let live_more = settings.live_entries_max - live_first;
    let live_slots = flag(settings.live_slots() != 0);
    let mut loader = EbpfLoader::new();
    if let Some(pins) = pins {
        for name in pins::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    Ok(loader
        .map_max_entries("LIVE", live_first)
        // No map has no entries.
        .map_max_entries("LIVE_MORE", live_more.max(1))
        .map_max_entries("STACKS", settings.stacks_entries_max)
        .map_max_entries("COUNTS", settings.counts_entries_max)
        .map_max_entries("AGES", settings.counts_entries_max)
        .map_max_entries("EVENTS", settings.ring_bytes)
        .map_max_entries("TARGETS", settings.targets_entries_max)
        .map_max_entries("TOTALS", settings.targets_entries_max)
        .map_max_entries("PURGED", settings.targets_entries_max)
        .map_max_entries("MAPPINGS", settings.targets_entries_max)
        .override_global("LIVE_MORE_ENTRIES", &live_more, true)
        .override_global("LIVE_SLOTS_USED", &live_slots, true)
        .override_global("HITS_PER_SECOND_MAX", &settings.hits_per_second_max, true)
        .override_global("PAUSE_NS", &settings.pause_ns, true)
        .override_global("WALK_STACKS", &walk, true)
        .override_global("REMEMBER_WALKS", &remember, true)
        .override_global("TRACE", &trace, true)
        .override_global("DEBUG", &debug, true)
        .override_global("TASK_TGID_OFFSET", &offsets.task_tgid, true)
        .override_global("TASK_PID_OFFSET", &offsets.task_pid, true)
        .override_global("TASK_SIGNAL_OFFSET", &offsets.task_signal, true)
        .override_global("SIGNAL_FLAGS_OFFSET", &offsets.signal_flags, true)
        .override_global("SIGNAL_EXEC_OFFSET", &offsets.signal_exec, true)
        .override_global("SIGNAL_LIVE_OFFSET", &offsets.signal_live, true)
        .load(object)?)
}

fn load_programs(ebpf: &mut Ebpf, pins: Option<&Pins>) -> Result<(), KernelError> {
    let pinned = pins.map(Pins::links).unwrap_or_default();
    for name in super::attach::PROGRAMS {
        let program: &mut UProbe = program(ebpf, name)?;
        program.load().map_err(|error| KernelError::Program(name, error))?;
    }
    for (name, tracepoint) in TRACEPOINTS {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        let refused = |error| KernelError::Program(name, error);
        program.load().map_err(refused)?;
        let link_name = format!("t_{tracepoint}");
        // An earlier daemon's program is there and counts: a second one would count twice.
        if pinned.contains(&link_name) {
            continue;
        }
        let id = program.attach(tracepoint).map_err(refused)?;
        if let Some(pins) = pins {
            pins.keep(program.take_link(id).map_err(refused)?.into(), &link_name)?;
        }
    }
    for name in EXECUTED {
        let program: &mut RawTracePoint = program(ebpf, name)?;
        program.load().map_err(|error| KernelError::Program(name, error))?;
    }
    Ok(())
}

/// A program of the object, as its type.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).ok_or(KernelError::NoProgram(name))?;
    program.try_into().map_err(|error| KernelError::Program(name, error))
}

/// Sends the programs' log lines to this process's log. Without a reader they would fill their own ring and be lost.
fn forward_logs(ebpf: &mut Ebpf) {
    let logger = match aya_log::EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!("the BPF programs' log can't be read: {error}");
            return;
        }
    };
    // SAFETY: the logger owns its descriptor and returns the same one until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let Ok(mut logger) = registered else {
        tracing::warn!("the BPF programs' log can't be waited on");
        return;
    };
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
}
