//! The parts of the report that come from memory: the census of a target, and callsites of tasks that no probe saw being
//! born or that have finished and are still held.
//!
//! In: what was read. Out: rows. A held task's callsite is that of the births of its type; where there are several, the one
//! from which most have ended.

use super::{Assembly, Entry, place, target_name};
use crate::{
    daemon::{
        images::Image,
        inspection::{Inspected, states_of},
    },
    export::{
        census::{CensusReport, CensusType},
        report::{CallsiteReport, Location, StateCounts, Verdict},
    },
    live::{States, Target},
    memory::census::Tally,
    symbols::{ResolvedFrame, callsite::CallsiteId, names::one_of},
    targets::plan::TaskType,
};
use leakmon_ebpf::abi::{Kind, TargetId};
use std::cmp::Reverse;

impl Assembly<'_> {
    /// The census of a target that is alive.
    pub(super) fn census(&self, id: TargetId, target: &Target) -> Option<CensusReport> {
        self.inspection.of(id).filter(|_| target.exited_ns.is_none())?.report()
    }

    /// Callsites that memory shows and no stack does.
    pub(super) fn of_memory(&self) -> Vec<CallsiteReport> {
        let mut rows = Vec::new();
        for (id, _) in self.live.targets().filter(|(_, target)| target.exited_ns.is_none()) {
            let (Some(inspected), Some(image)) = (self.inspection.of(id), self.image(id)) else {
                continue;
            };
            rows.extend(self.older(id, inspected, image));
            rows.extend(self.held(id, inspected, image));
        }
        rows
    }

    fn image(&self, target: TargetId) -> Option<&Image> {
        let (device, inode) = self.processes.of(target)?.file?;
        self.images.of_file(device, inode)
    }

    /// One row for each type that has tasks older than the attach.
    fn older(&self, id: TargetId, inspected: &Inspected, image: &Image) -> Vec<CallsiteReport> {
        let types = inspected.older.iter().flat_map(|older| &older.types);
        let row = |(index, found, tally): &(usize, u64, Tally)| {
            let task_type = image.plan.task_types.get(*index)?;
            let kind = kind_name(task_type.kind);
            let live = tally.alive();
            Some(CallsiteReport {
                live,
                ended: found.saturating_sub(live),
                born_before_attach: *found,
                // That is how old it is at least.
                oldest_seconds: None,
                evidence: Some("These tasks were born before leakmon was attached, so nobody saw where.".to_owned()),
                states: (live > 0).then(|| counts(states_of(tally))),
                ..blank(
                    id,
                    CallsiteId::new(kind, task_type.vtable, &nowhere(image)),
                    kind,
                    task_type,
                )
            })
        };
        types.filter_map(row).collect()
    }

    /// One row for each type that has finished tasks whose memory is held.
    fn held(&self, id: TargetId, inspected: &Inspected, image: &Image) -> Vec<CallsiteReport> {
        let types = inspected.census.iter().flat_map(|census| &census.types);
        let held = types.filter(|row| row.counts.held > 0 && !row.runtime_owned);
        held.filter_map(|row| self.held_row(id, row, image)).collect()
    }

    fn held_row(&self, id: TargetId, row: &CensusType, image: &Image) -> Option<CallsiteReport> {
        let task_type = image.plan.task_types.iter().find(|known| known.vtable == row.vtable)?;
        let births = self.births_of(id, row.vtable);
        let first = births.first();
        let location = first.and_then(|entry| entry.names.location());
        let handle = "Finished, but a JoinHandle or a JoinSet that was not drained keeps the memory";
        let place_of = match births.len() {
            0 => "; where they were spawned was not seen, since they are older than the attach".to_owned(),
            1 => String::new(),
            more => {
                format!("; tasks of this type were seen to be spawned with {more} stacks, this is the most frequent")
            }
        };
        Some(CallsiteReport {
            live: row.counts.held,
            bytes: row.counts.held_bytes,
            evidence: Some(format!("{handle}{place_of}.")),
            location: location.map(place).unwrap_or_default(),
            ..blank(
                id,
                CallsiteId::new("held", row.vtable, location.unwrap_or(&nowhere(image))),
                "held",
                task_type,
            )
        })
    }

    /// The stacks with which tasks of a type were born, the one first from which most have ended.
    fn births_of(&self, target: TargetId, vtable: u64) -> Vec<Entry<'_>> {
        let of_type = |entry: &Entry<'_>| {
            let site = self.images.site(entry.count.cookie);
            site.and_then(|(_, task_type)| task_type)
                .is_some_and(|known| known.vtable == vtable)
        };
        let stacks = self.live.stacks().filter(|(key, _)| key.target == target);
        let mut births: Vec<Entry<'_>> = stacks
            .filter_map(|(key, count)| {
                Some(Entry {
                    count,
                    names: self.names.of(key)?,
                })
            })
            .filter(of_type)
            .collect();
        births.sort_by_key(|entry| (Reverse(entry.count.ended), entry.names.id));
        births
    }
}

/// A row that says who it is and nothing else.
fn blank(target: TargetId, id: CallsiteId, kind: &'static str, task_type: &TaskType) -> CallsiteReport {
    CallsiteReport {
        id: id.to_string(),
        target: target_name(target),
        pid: target.tgid(),
        kind,
        live: 0,
        spawned: 0,
        ended: 0,
        born_before_attach: 0,
        bytes: None,
        oldest_seconds: None,
        growth_per_minute: None,
        verdict: Verdict::Unknown,
        evidence: None,
        states: None,
        task_type: one_of(&task_type.names),
        location: Location::default(),
        stacks: Vec::new(),
    }
}

/// A place of the image that no callsite has, so that rows without one have ids of their own.
fn nowhere(image: &Image) -> ResolvedFrame {
    ResolvedFrame {
        build_id: Some(image.plan.image.build_id.as_str().into()).filter(|_| !image.plan.image.build_id.is_empty()),
        offset: u64::MAX,
        ..ResolvedFrame::default()
    }
}

pub(super) fn counts(states: States) -> StateCounts {
    StateCounts {
        sampled: states.sampled,
        idle: states.idle,
        scheduled: states.scheduled,
        running: states.running,
        unwakeable: states.unwakeable,
    }
}

/// The word of the JSON contract for a kind of task.
const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Local => "local",
        Kind::Blocking => "blocking",
        _ => "task",
    }
}
