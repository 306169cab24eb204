//! What discovery found, on its way to being watched.
//!
//! In: images with their processes, and processes of known images. Out: attached images and targets. An image waits, within a
//! bound, until its unwind table is built, so that the first stacks are whole. The same image under a second mount is no second
//! image: it would count everything twice.

use super::{
    Observer,
    discovery::{Counts, Discovery, Found},
    images::Image,
};
use crate::{
    kernel::{
        clock::{monotonic_ns, monotonic_of_boot},
        detach, page_cache,
    },
    targets::{identity::FileKey, plan::ProbePlan, processes, rules::Rules},
};
use leakmon_ebpf::abi::TargetId;
use std::{
    fs::File,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// How long an image waits for its unwind table.
const TABLE_WAIT: Duration = Duration::from_secs(2);

/// How long the observation waits for the first look at all processes; what is found later is watched from then on.
const FIRST_LOOK_MAX: Duration = Duration::from_secs(20);

/// Images that wait; beyond it they are attached at once.
const ARRIVALS_MAX: usize = 64;

/// How often targets whose end nobody told are looked for.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(5);

/// An image that waits for its table.
pub(super) struct Arrival {
    plan: ProbePlan,
    file: File,
    key: FileKey,
    tgids: Vec<u32>,
    since: Instant,
}

/// The search and what it found.
#[derive(Default)]
pub(super) struct Arrivals {
    pub(super) discovery: Option<Discovery>,
    waiting: Vec<Arrival>,
    /// Whether all processes that there were at the start have been looked at.
    complete: bool,
    reconciled: Option<Instant>,
    /// Images that could not be attached since there was no room.
    pub(super) images_refused: u64,
}

impl Arrivals {
    /// Whether all processes that there were at the start have been looked at.
    pub(super) const fn is_complete(&self) -> bool {
        self.complete
    }

    /// Records of mappings that were lost, and files that were forgotten, for want of room.
    pub(super) fn losses(&self) -> (u64, u64) {
        self.counted(|counts| {
            let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            (of(&counts.mappings_lost), of(&counts.files_forgotten))
        })
    }

    /// Files that were analysed.
    pub(super) fn files_analysed(&self) -> u64 {
        self.counted(|counts| counts.analysed.load(Ordering::Relaxed))
    }

    fn counted<T: Default>(&self, read: impl Fn(&Counts) -> T) -> T {
        self.discovery
            .as_ref()
            .map_or_else(T::default, |discovery| read(&discovery.counts))
    }

    /// The next thing that was found. Waits for ever where nothing is searched. Safe to drop half-way.
    pub(super) async fn found(&mut self) -> Option<Found> {
        match &mut self.discovery {
            Some(discovery) => discovery.found().await,
            None => std::future::pending().await,
        }
    }
}

impl Observer {
    /// Finds the processes of this host that run a known runtime and are wanted, and watches them, from now on.
    ///
    /// # Errors
    /// The kernel does not tell of new programs, or the thread can't be started.
    pub fn discover(&mut self, rules: Arc<Rules>) -> anyhow::Result<()> {
        self.arrivals.discovery = Some(Discovery::start(self.analyst.clone(), rules)?);
        Ok(())
    }

    /// Shows only processes that these rules want, and those that were asked for by number.
    pub fn show_only(&mut self, rules: Arc<Rules>) {
        self.judgement.rules = Some(rules).filter(|rules| !rules.want_all());
    }

    /// Waits, within a bound, until all processes that there were at the start have been looked at and their images are attached.
    pub async fn first_look(&mut self) {
        let looked = async {
            while !(self.arrivals.complete && self.arrivals.waiting.is_empty()) {
                tokio::select! {
                    found = self.arrivals.found() => self.take_found(found),
                    finished = self.unwinding.built() => self.place_table(finished),
                    () = tokio::time::sleep(TABLE_WAIT), if !self.arrivals.waiting.is_empty() => {}
                }
                self.attach_arrived();
            }
        };
        if timeout(FIRST_LOOK_MAX, looked).await.is_err() {
            tracing::warn!("not all processes have been looked at yet; the others follow");
        }
    }

    pub(super) fn take_found(&mut self, found: Option<Found>) {
        match found {
            Some(Found::Image { plan, file, tgids }) => self.arrive(*plan, file, tgids),
            Some(Found::Process { tgid, key }) => self.join(tgid, key),
            Some(Found::Refused { tgid, reason }) => self.processes.refuse(tgid, reason),
            Some(Found::Complete) => self.arrivals.complete = true,
            None => {
                tracing::error!("the search for processes has ended: new programs are not found any more");
                self.arrivals.complete = true;
                self.arrivals.discovery = None;
            }
        }
    }

    fn arrive(&mut self, plan: ProbePlan, file: File, tgids: Vec<u32>) {
        let Ok(key) = file.metadata().map(|metadata| FileKey::of(&metadata)) else {
            return;
        };
        // The same file with other contents: what is probed now is wrong.
        if let Some((number, image)) = self.images.find_file(key.device, key.inode)
            && !image.names().contains(&key)
        {
            self.retire(number);
        }
        let known = self.images.find_file(key.device, key.inode).map(|(number, _)| number);
        if let Some(number) = known.or_else(|| self.same_image(&plan, &file)) {
            self.images.add_name(number, key);
            for tgid in tgids {
                self.join(tgid, key);
            }
            return;
        }
        self.unwinding.expect(&file);
        self.arrivals.waiting.push(Arrival {
            plan,
            file,
            key,
            tgids,
            since: Instant::now(),
        });
    }

    /// The watched image that is this very file under another mount.
    fn same_image(&self, plan: &ProbePlan, file: &File) -> Option<u32> {
        let offset = plan.sites.first()?.file_offset;
        let alike = |known: &ProbePlan| !plan.image.build_id.is_empty() && known.image.build_id == plan.image.build_id;
        let same = |image: &Image| {
            // Where the kernel does not tell, an equal inode number is the next best sign.
            page_cache::is_same_inode(image.open_file(), file, offset)
                .unwrap_or(image.plan.image.inode == plan.image.inode)
        };
        let found = self
            .images
            .numbers()
            .find(|(_, image)| alike(&image.plan) && same(image));
        found.map(|(number, _)| number)
    }

    /// Attaches the images whose tables are there, or have been waited for long enough.
    pub(super) fn attach_arrived(&mut self) {
        let complete = self.unwinding.is_complete();
        let too_many = self.arrivals.waiting.len() > ARRIVALS_MAX;
        let ready = |arrival: &Arrival| complete || too_many || arrival.since.elapsed() >= TABLE_WAIT;
        let (ready, waiting) = std::mem::take(&mut self.arrivals.waiting).into_iter().partition(ready);
        self.arrivals.waiting = waiting;
        for arrival in ready {
            let Arrival {
                plan, file, key, tgids, ..
            } = arrival;
            // It may have come twice, under two mounts.
            let known = self.same_image(&plan, &file);
            let outcome = match known {
                Some(number) => Ok(number),
                None => self.add_with_room(plan, file),
            };
            match outcome {
                Ok(number) => {
                    self.images.add_name(number, key);
                    for tgid in tgids {
                        self.join(tgid, key);
                    }
                }
                Err(error) => {
                    tracing::warn!("{error:#}");
                    self.arrivals.images_refused += 1;
                    for tgid in tgids {
                        self.processes.refuse(tgid, format!("{error:#}"));
                    }
                }
            }
        }
    }

    fn add_with_room(&mut self, plan: ProbePlan, file: File) -> anyhow::Result<u32> {
        if self.images.next_number().is_none() {
            self.retire_unused(|_| true);
        }
        let number = self.add_image(plan, file, true)?;
        self.images.set_found(number);
        Ok(number)
    }

    /// A wanted process maps a known image: it is a target before its first hit.
    fn join(&mut self, tgid: u32, key: FileKey) {
        if let Some(arrival) = self.arrivals.waiting.iter_mut().find(|arrival| arrival.key == key) {
            arrival.tgids.push(tgid);
            return;
        }
        let Some((number, _)) = self.images.find_file(key.device, key.inode) else {
            return;
        };
        if !processes::lives(tgid) {
            return;
        }
        if self.kernel.target(tgid).is_none() {
            self.begin(tgid);
            self.note_gap(tgid);
        }
        let Some(entry) = self.kernel.target(tgid) else {
            return;
        };
        // A hit may have made it a target before it was looked at; what it ran until then was not seen all the same.
        if entry.whole == 0 {
            self.inspection.see_running(TargetId(entry.target));
        }
        // Only after it has become a target the kernel tells of its end.
        if processes::lives(tgid) {
            self.processes.maps(TargetId(entry.target), number);
        } else {
            self.end(TargetId(entry.target));
        }
    }

    /// After a restart, a process that nobody has made a target and that is older than this daemon ran an image that the earlier
    /// one did not know.
    fn note_gap(&mut self, tgid: u32) {
        let started = processes::thread(tgid, tgid).map(|thread| monotonic_of_boot(thread.started_boot_ns));
        if started.is_some_and(|started_ns| started_ns < self.began_ns) {
            self.note_late(tgid);
        }
    }

    /// A target's process has gone, and the kernel may have told of it before it was a target.
    fn end(&mut self, target: TargetId) {
        self.kernel.end_target(target);
        self.live.exited(target, monotonic_ns());
    }

    /// Looks for targets that have gone without anybody being told, in the kernel's table: what nobody wants is there too.
    pub(super) fn reconcile(&mut self) {
        let due = self
            .arrivals
            .reconciled
            .is_none_or(|last| last.elapsed() >= RECONCILE_INTERVAL);
        if !due {
            return;
        }
        self.arrivals.reconciled = Some(Instant::now());
        for (tgid, entry) in self.kernel.targets() {
            if !processes::lives(tgid) {
                self.end(TargetId(entry.target));
            }
        }
        self.processes.forget_refused_that_ended();
        self.retire_unused(Image::is_deleted);
        self.unwinding.release_deleted();
        self.names.release_deleted();
    }

    /// Lets go of the images that no target runs, where `which` says so. An image that was asked for by its path stays.
    fn retire_unused(&mut self, which: impl Fn(&Image) -> bool) {
        let mut used = self.processes.images(&self.images);
        used.extend(self.live.stacks().map(|(_, count)| count.cookie.image()));
        let unused: Vec<u32> = self
            .images
            .numbers()
            .filter(|(number, image)| !image.is_named && !used.contains(number) && which(image))
            .map(|(number, _)| number)
            .collect();
        for number in unused {
            self.retire(number);
        }
    }

    /// Takes an image out of use. Its probes are closed on another thread, since that takes a tenth of a second each.
    fn retire(&mut self, number: u32) {
        let Some(image) = self.images.remove(number) else {
            return;
        };
        if let Some(discovery) = &self.arrivals.discovery {
            for key in image.names() {
                discovery.forget(*key);
            }
        }
        if let Some(links) = self.kernel.take_links(number) {
            let _in_its_time = detach::on_thread(links);
        }
        tracing::info!(
            "{} is not watched any more: no process runs it",
            image.plan.path.display()
        );
    }
}
