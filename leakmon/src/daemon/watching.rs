//! What is watched: images with their probes, processes by number, children of a command.
//!
//! In: paths, process numbers, plans. Out: attached sites and targets that are known before their first hit.

use super::{Observer, images::Image};
use crate::{
    analysis::Analyst,
    kernel::{KernelError, attach::ImageNumber, clock::monotonic_ns, detach, event::Event},
    targets::{self, AnalyseError, plan::ProbePlan, processes::ProcessImage},
};
use anyhow::Context;
use leakmon_ebpf::abi::{FOLLOW, HOLD_CHILDREN, HOLD_EXEC, TargetId};
use std::{collections::BTreeSet, fs::File, os::unix::fs::MetadataExt, path::PathBuf, time::Duration};
use tokio::time::timeout;

/// How long an attach waits for unwind tables; what has none by then is walked as far as is known.
const TABLES_WAIT: Duration = Duration::from_secs(10);

/// Libraries of a process that are looked at; large desktop programs map some 300.
const LIBRARIES_MAX: usize = 512;

/// Why a target is partial that began while no daemon ran.
const IN_THE_GAP: &str =
    "it ran before its probes were attached, when leakmon was restarted: what was born until then is not counted";

/// What can be watched, found out before anything is attached.
#[derive(Debug, Default)]
pub struct Watchable {
    executables: Vec<(ProbePlan, File)>,
    processes: Vec<(u32, ProbePlan, File)>,
    /// Processes of which only the threads can be watched, and why.
    threads_only: Vec<(u32, anyhow::Error)>,
    /// Processes, and executables (`None`), that can't be.
    refused: Vec<(Option<u32>, anyhow::Error)>,
}

impl Watchable {
    /// Looks at executables, and at processes by their number.
    ///
    /// # Errors
    /// The first reason, where nothing at all can be watched.
    pub fn find(analyst: &Analyst, exes: &[PathBuf], tgids: &[u32]) -> anyhow::Result<Self> {
        let mut found = Self::default();
        for exe in exes {
            match targets::analyse_path(analyst, exe) {
                Ok(executable) => found.executables.push(executable),
                Err(error) => found.refused.push((None, error.into())),
            }
        }
        for tgid in tgids {
            let libraries = libraries(analyst, *tgid);
            match plan_of_process(analyst, *tgid) {
                Ok((plan, image)) => found.processes.push((*tgid, plan, image.file)),
                Err(error) if !libraries.is_empty() => tracing::debug!("{error:#}; its libraries are watched"),
                // Threads are the kernel's: they need no plan.
                Err(error) if error.is::<AnalyseError>() => found.threads_only.push((*tgid, error)),
                Err(error) => found.refused.push((Some(*tgid), error)),
            }
            let libraries = libraries.into_iter().map(|(plan, file)| (*tgid, plan, file));
            found.processes.extend(libraries);
        }
        let nothing = found.executables.is_empty() && found.processes.is_empty() && found.threads_only.is_empty();
        if nothing && !found.refused.is_empty() {
            return Err(found.refused.swap_remove(0).1);
        }
        Ok(found)
    }
}

/// The shared libraries with a runtime among those that a process maps now. What can't be opened or analysed is left out: the
/// executable says whether the process can be watched at all.
fn libraries(analyst: &Analyst, tgid: u32) -> Vec<(ProbePlan, File)> {
    let Ok(mappings) = targets::processes::executable_mappings(tgid) else {
        return Vec::new();
    };
    let mut seen: BTreeSet<(u64, u64)> = ProcessImage::open(tgid)
        .map(|image| (image.device, image.inode))
        .into_iter()
        .collect();
    let mut found = Vec::new();
    for mapping in mappings.executable.iter().filter(|mapping| mapping.has_file()) {
        if seen.len() > LIBRARIES_MAX {
            tracing::warn!("process {tgid} maps more than {LIBRARIES_MAX} libraries; the others are not looked at");
            break;
        }
        let Ok(file) = targets::processes::open_mapping(tgid, mapping) else {
            continue;
        };
        let is_new = file
            .metadata()
            .is_ok_and(|metadata| seen.insert((metadata.dev(), metadata.ino())));
        if is_new && let Ok(plan) = targets::analyse(analyst, &file, &mapping.path) {
            found.push((plan, file));
        }
    }
    found
}

/// The processes that run the file with this device and inode.
fn running(identity: (u64, u64)) -> impl Iterator<Item = u32> {
    let tgids = targets::processes::tgids().unwrap_or_default().into_iter();
    // One that vanishes, or that may not be looked at, is not ours.
    tgids.filter(move |tgid| ProcessImage::open(*tgid).is_ok_and(|image| (image.device, image.inode) == identity))
}

/// What a process runs, and its plan.
///
/// # Errors
/// Where the number is a thread's, the process has gone, or its program can't be analysed.
pub(crate) fn plan_of_process(analyst: &Analyst, tgid: u32) -> anyhow::Result<(ProbePlan, ProcessImage)> {
    let leader = targets::processes::leader(tgid)?;
    if leader != tgid {
        return Err(KernelError::Thread {
            tid: tgid,
            tgid: leader,
        }
        .into());
    }
    let image = ProcessImage::open(tgid)?;
    let plan =
        targets::analyse(analyst, &image.file, &image.path).map_err(|error| error.of_process(tgid, &image.path))?;
    Ok((plan, image))
}

impl Observer {
    /// Attaches an image, and returns its number. `every_process` makes all its processes targets, not only the watched ones.
    ///
    /// # Errors
    /// Where there is no room, or none of its sites can be attached.
    pub fn add_image(&mut self, plan: ProbePlan, file: File, every_process: bool) -> anyhow::Result<u32> {
        let path = plan.path.display().to_string();
        let number = self
            .images
            .next_number()
            .with_context(|| format!("{path}: too many images are watched"))?;
        self.unwinding.expect(&file);
        match self.attach_image(plan, file, ImageNumber { number, every_process }) {
            Ok(image) => self.images.add(number, image),
            Err(error) => {
                // The next image must find no probe of this one under its number.
                self.images.pass_over(number);
                if let Some(links) = self.kernel.take_links(number) {
                    let _in_its_time = detach::on_thread(links);
                }
                return Err(error);
            }
        }
        Ok(number)
    }

    fn attach_image(&mut self, plan: ProbePlan, file: File, number: ImageNumber) -> anyhow::Result<Image> {
        let path = plan.path.display().to_string();
        let attached = self.kernel.attach(&plan, &file, number)?;
        if attached.sites.is_empty() {
            let reason = attached
                .refused
                .first()
                .map_or("it has no probe sites", |(_, reason)| reason);
            return Err(KernelError::NoSite {
                path,
                reason: reason.to_owned(),
            }
            .into());
        }
        for (index, reason) in &attached.refused {
            tracing::warn!("{path}: site {index} is not attached: {reason}");
        }
        Image::new(plan, file, attached).with_context(|| format!("{path}: can't be read"))
    }

    /// Watches what was found.
    ///
    /// # Errors
    /// The first reason, where nothing at all can be watched.
    pub async fn watch_all(&mut self, watchable: Watchable) -> anyhow::Result<()> {
        let Watchable {
            executables,
            processes,
            threads_only,
            refused,
        } = watchable;
        for (tgid, error) in refused {
            match tgid {
                Some(tgid) => self.processes.refuse(tgid, format!("{error:#}")),
                None => tracing::warn!("{error:#}"),
            }
        }
        let mut failure = None;
        for (plan, file) in executables {
            failure = self.watch_executable(plan, file).await.err().or(failure);
        }
        for (tgid, plan, file) in processes {
            if let Err(error) = self.watch_process(tgid, plan, file).await {
                self.processes.refuse(tgid, format!("{error:#}"));
                failure.get_or_insert(error);
            }
        }
        for (tgid, error) in threads_only {
            tracing::warn!("{error:#}; its threads alone are watched");
            if let Err(error) = self.watch_threads(tgid, &error).await {
                self.processes.refuse(tgid, format!("{error:#}"));
                failure.get_or_insert(error);
            }
        }
        self.first_readings().await;
        match failure {
            Some(error) if self.live.targets().next().is_none() && self.images.is_empty() => Err(error),
            Some(error) => {
                tracing::warn!("{error:#}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn watch_executable(&mut self, plan: ProbePlan, file: File) -> anyhow::Result<()> {
        let identity = (plan.image.device, plan.image.inode);
        // Named twice, by another path perhaps: a second set of probes would count everything twice.
        if self.images.of_file(identity.0, identity.1).is_some() {
            return Ok(());
        }
        for tgid in running(identity) {
            self.begin(tgid);
            self.note_late(tgid);
        }
        self.prepare().await;
        self.add_image(plan, file, true)?;
        // What has begun meanwhile has tasks that nobody saw born, and nobody else would say so.
        for tgid in running(identity) {
            self.begin(tgid);
            if let Some(entry) = self.kernel.target(tgid).filter(|entry| entry.whole == 0) {
                self.inspection.see_running(TargetId(entry.target));
            }
        }
        Ok(())
    }

    async fn watch_process(&mut self, tgid: u32, plan: ProbePlan, file: File) -> anyhow::Result<()> {
        let started = targets::processes::start_time_ticks(tgid)?;
        self.begin_named(tgid);
        self.prepare().await;
        if self.images.of_file(plan.image.device, plan.image.inode).is_none() {
            // Where others are searched for, its other processes may be wanted too.
            self.add_image(plan, file, self.arrivals.discovery.is_some())?;
        }
        self.kernel.watch(tgid, 0)?;
        self.make_sure_it_lives(tgid, started)
    }

    /// Watches the threads of a process whose image can't be probed, for the reason `because`.
    async fn watch_threads(&mut self, tgid: u32, because: &anyhow::Error) -> anyhow::Result<()> {
        let started = targets::processes::start_time_ticks(tgid)?;
        self.begin_named(tgid);
        self.prepare().await;
        let Some(entry) = self.kernel.target(tgid) else {
            return Err(targets::processes::ProcessError::Gone { tgid }.into());
        };
        let target = TargetId(entry.target);
        self.processes.watch_threads_only(target, because);
        self.make_sure_it_lives(tgid, started)
    }

    /// A process that was made a target may have ended meanwhile, when nobody could be told, and its number may be another
    /// process's by now.
    fn make_sure_it_lives(&mut self, tgid: u32, started: u64) -> anyhow::Result<()> {
        let lives = targets::processes::start_time_ticks(tgid).ok() == Some(started)
            // A zombie has no executable any more.
            && targets::processes::executable_path(tgid).is_ok();
        if !lives {
            self.kernel.disown(tgid);
            return Err(targets::processes::ProcessError::Gone { tgid }.into());
        }
        Ok(())
    }

    /// After a restart, a process of an image that the earlier daemon did not know may have run in the gap.
    pub(super) fn note_late(&mut self, tgid: u32) {
        if let Some(entry) = self.kernel.target(tgid).filter(|_| self.kernel.has_resumed()) {
            self.processes.note_late(TargetId(entry.target), IN_THE_GAP);
        }
    }

    /// Waits, within a bound, until the unwind tables of all known mappings are loaded, so that the first stacks are whole.
    pub(super) async fn prepare(&mut self) {
        let ready = async {
            while !self.unwinding.is_complete() {
                let finished = self.unwinding.built().await;
                self.place_table(finished);
            }
        };
        if timeout(TABLES_WAIT, ready).await.is_err() {
            tracing::warn!("unwind tables take long: the first stacks may be cut short");
        }
    }

    /// As [`Self::begin`], for a process that was asked for by number, which is wanted whatever the rules say.
    fn begin_named(&mut self, tgid: u32) {
        self.judgement.named = Some(tgid);
        self.begin(tgid);
        // It may have been a target already, which nobody has judged yet.
        if let Some(entry) = self.kernel.target(tgid) {
            self.is_wanted(TargetId(entry.target));
        }
        self.judgement.named = None;
    }

    /// Makes a running process a target now, so that it is shown before its first hit.
    pub(super) fn begin(&mut self, tgid: u32) {
        let now_ns = monotonic_ns();
        if self.kernel.target(tgid).is_some() {
            return;
        }
        match self.kernel.begin_target(tgid, now_ns) {
            Ok(target) => {
                self.inspection.see_running(target);
                self.take_event(&Event::Target {
                    target,
                    time_ns: now_ns,
                });
            }
            Err(error) => tracing::warn!("process {tgid} can't be followed: {error}"),
        }
    }

    /// Probe sites that are attached.
    #[must_use]
    pub fn attached_sites(&self) -> usize {
        self.kernel.attached_sites()
    }

    /// Watches what `spawn` starts, with its descendants. It is held at its entry point until its unwind tables
    /// are loaded; its descendants only after [`Self::hold_descendants`].
    ///
    /// # Errors
    /// Where too many processes are watched already, or `spawn` fails.
    pub fn watch_children<T>(&mut self, spawn: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        // The programs see the fork of this very process, so the child is watched before it exists.
        let own_tgid = std::process::id();
        let hold_exec = if self.first_sight.is_some() { HOLD_EXEC } else { 0 };
        self.kernel.watch(own_tgid, FOLLOW | HOLD_CHILDREN | hold_exec)?;
        let spawned = spawn();
        self.kernel.unwatch(own_tgid);
        spawned
    }
}
