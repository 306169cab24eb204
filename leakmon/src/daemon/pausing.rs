//! Taking the probes of births off where they cost much and count nothing.
//!
//! In: the pauses of targets. Out: an image without probes of births for as long as all its processes are paused. Ends go on
//! being seen, so what was counted stays right. Probes sit on files: where other processes of the image are not paused they stay,
//! and the programs leave the paused ones' births out.

use super::Observer;
use crate::kernel::{clock::monotonic_ns, detach};
use leakmon_ebpf::abi::{Role, TargetId};
use std::{
    collections::{BTreeMap, BTreeSet},
    thread::JoinHandle,
};

/// A pause that ends sooner is not worth it: a probe takes a tenth of a second to go.
const PAUSE_MIN_NS: u64 = 1_000_000_000;

/// Why a target is partial that began while the probes of births were off.
const MEANWHILE: &str = "it began while the probes of births were off, since all processes of its image were paused: \
                         its first tasks are not counted";

/// The images without probes of births, by number, each with the thread that takes them off.
#[derive(Debug, Default)]
pub(super) struct Resting(BTreeMap<u32, Option<JoinHandle<()>>>);

impl Observer {
    /// Takes probes of births off and puts them back, as the pauses want it.
    pub(super) fn rest(&mut self) {
        let now_ns = monotonic_ns();
        let is_any_paused = self.live.targets().any(|(_, target)| target.paused_until_ns > now_ns);
        if self.resting.0.is_empty() && !is_any_paused {
            return;
        }
        let pauses = self.pauses();
        let rests = |number: &u32, at_ns| pauses.get(number).is_some_and(|until_ns| *until_ns > at_ns);
        let over: Vec<u32> = self
            .resting
            .0
            .keys()
            .copied()
            .filter(|number| !rests(number, now_ns))
            .collect();
        for number in over {
            self.put_births_back(number);
        }
        let begun = pauses
            .keys()
            .copied()
            .filter(|number| rests(number, now_ns + PAUSE_MIN_NS));
        let begun: Vec<u32> = begun.filter(|number| !self.resting.0.contains_key(number)).collect();
        for number in begun {
            self.take_births(number);
        }
    }

    /// A target has begun: where the births of its image are not seen, they are from now on.
    pub(super) fn wake_for(&mut self, target: TargetId) {
        let numbers: Vec<u32> = self.resting.0.keys().copied().collect();
        if numbers.is_empty() {
            return;
        }
        let own = self.images_of(target);
        for number in numbers.into_iter().filter(|number| own.contains(number)) {
            self.processes.note_late(target, MEANWHILE);
            self.put_births_back(number);
        }
    }

    /// Until when all running targets of an image are paused; 0 where one is not.
    fn pauses(&self) -> BTreeMap<u32, u64> {
        let running = self.live.targets().filter(|(_, target)| target.exited_ns.is_none());
        let until: BTreeMap<TargetId, u64> = running.map(|(id, target)| (id, target.paused_until_ns)).collect();
        let mut pauses = BTreeMap::new();
        let mut note = |number: u32, until_ns: u64| {
            pauses
                .entry(number)
                .and_modify(|first: &mut u64| *first = until_ns.min(*first))
                .or_insert(until_ns);
        };
        for (target, until_ns) in &until {
            for number in self.images_of(*target) {
                note(number, *until_ns);
            }
        }
        // A library's tasks are known by their hits alone.
        for (key, count) in self.live.stacks().filter(|(_, count)| !count.cookie.is_thread()) {
            if let Some(until_ns) = until.get(&key.target) {
                note(count.cookie.image(), *until_ns);
            }
        }
        pauses
    }

    /// The images that a target is known to run before its first hit.
    fn images_of(&self, target: TargetId) -> BTreeSet<u32> {
        let file = self.processes.of(target).and_then(|process| process.file);
        let program = file.and_then(|(device, inode)| self.images.find_file(device, inode));
        program
            .map(|(number, _)| number)
            .into_iter()
            .chain(self.processes.mapped(target))
            .collect()
    }

    fn take_births(&mut self, number: u32) {
        let Some(image) = self.images.get(number) else {
            return;
        };
        tracing::info!(
            "{}: births are not looked at during the pause",
            image.plan.path.display()
        );
        let links = self.kernel.take_births(number, &image.plan);
        self.images.set_attached(number, u64::MAX);
        self.resting.0.insert(number, detach::on_thread(links));
    }

    /// Waits for another turn while the old probes are still being taken off: with both, a birth would be counted twice.
    fn put_births_back(&mut self, number: u32) {
        let is_off = |thread: &Option<JoinHandle<()>>| thread.as_ref().is_none_or(JoinHandle::is_finished);
        if !self.resting.0.get(&number).is_some_and(is_off) {
            return;
        }
        self.resting.0.remove(&number);
        let Some(image) = self.images.get(number) else {
            return;
        };
        let path = image.plan.path.display().to_string();
        let is_birth = |index: &usize| {
            image
                .plan
                .sites
                .get(*index)
                .is_some_and(|site| site.role == Role::Birth)
        };
        let sites: Vec<usize> = image.attached.sites.iter().copied().filter(is_birth).collect();
        let births = self
            .kernel
            .attach_births(&image.plan, image.open_file(), number, &image.attached.sites);
        let refused = match births {
            Ok(attached) => {
                self.images.set_attached(number, monotonic_ns());
                attached.refused
            }
            // Since when births are seen is not known any more: the image stays as one of which they are not.
            Err(error) => sites.into_iter().map(|index| (index, error.to_string())).collect(),
        };
        for (index, reason) in refused {
            let reason = format!("site {index} is not attached again after a pause: {reason}");
            tracing::warn!("{path}: {reason}");
            self.images.drop_index(number, index, reason);
        }
    }
}
