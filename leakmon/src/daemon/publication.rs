//! Snapshots for HTTP.
//!
//! In: what the observer knows at a tick. Out: one snapshot that never changes, and leakmon's own numbers in it. Requests are
//! answered from it by other threads.

use super::{Observer, images::Image};
use crate::{
    export::{
        http::Source,
        pods::Pods,
        report::Report,
        series::{Limits, SeriesBook},
        snapshot::Snapshot,
    },
    kernel::event::Event,
    self_metrics::{MapFill, SelfMetrics},
    supervision::Pulse,
};
use leakmon_ebpf::abi::{Loss, TargetId};
use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

/// Names of [`Loss::ALL`] in `leakmon_events_dropped_total`.
const LOSS_NAMES: [&str; Loss::ALL.len()] = [
    "ring_full",
    "live_full",
    "stacks_full",
    "counts_full",
    "targets_full",
    "scratch_busy",
    "walk_frame_pointer",
    "walk_bad_read",
    "walk_too_deep",
    "walk_no_table",
    "walk_unsupported",
    "paused",
    "watched_full",
];

/// Where snapshots go.
pub(super) struct Publisher {
    source: Source,
    book: SeriesBook,
    pods: Option<Arc<Pods>>,
    pub(super) interval: Duration,
}

impl Observer {
    /// Publishes a snapshot every `interval` while [`Self::observe`] runs, forgets what has exited, and beats `source`'s
    /// heart and the service manager's watchdog.
    pub fn publish_to(&mut self, source: Source, interval: Duration) {
        self.pulse = Some(Pulse::new(Arc::clone(&source.heartbeat)));
        self.publisher = Some(Publisher {
            source,
            book: SeriesBook::new(Limits::default()),
            pods: None,
            interval,
        });
    }

    /// From now on what is published has the names of these pods.
    pub fn name_pods(&mut self, pods: Option<Arc<Pods>>) {
        if let Some(publisher) = &mut self.publisher {
            publisher.pods = pods;
        }
    }

    /// From now on a snapshot is published every `interval`.
    pub fn publish_every(&mut self, interval: Duration) {
        if let Some(publisher) = &mut self.publisher {
            publisher.interval = interval;
        }
    }

    /// Notes that the configuration was read again, and whether it is in force now.
    pub fn note_reload(&mut self, successful: bool) {
        self.configured.successful = successful;
        if successful {
            self.configured.at = SystemTime::now();
        }
    }

    pub(super) fn publish(&mut self) {
        if self.publisher.is_none() {
            return;
        }
        let mut report = self.report();
        let own = self.self_metrics(&report);
        let Some(publisher) = &mut self.publisher else {
            return;
        };
        if let Some(pods) = &publisher.pods {
            pods.name(&mut report);
        }
        let series = publisher.book.observe(&report);
        let ready =
            self.kernel.attached_sites() > 0 || self.live.targets().next().is_some() || self.arrivals.is_complete();
        publisher
            .source
            .snapshot
            .store(Arc::new(Snapshot::new(report, series, own, ready)));
        self.forget_exited();
    }

    /// Drops the targets that the snapshot just published shows as exited.
    fn forget_exited(&mut self) {
        let gone: Vec<TargetId> = self
            .live
            .targets()
            .filter(|(_, target)| target.exited_ns.is_some())
            .map(|(target, _)| target)
            .collect();
        if !gone.is_empty() {
            self.forget_targets(gone);
        }
    }

    /// Drops all that is known of targets that have exited.
    pub(super) fn forget_targets(&mut self, gone: Vec<TargetId>) {
        self.kernel.forget(&gone);
        self.forget_all(&gone.into_iter().collect());
    }

    /// Drops all that is known of targets in user space.
    pub(super) fn forget_all(&mut self, gone: &BTreeSet<TargetId>) {
        self.live.forget(gone);
        self.processes.forget(gone);
        self.names.forget(gone);
        self.unwinding.forget(gone);
        self.judgement.forget(gone);
        for target in gone {
            self.inspection.forget(*target);
        }
    }

    /// What user space had no room for, by reason.
    fn refused(&self) -> [(&'static str, u64); 12] {
        let live = self.live.refused();
        let (mappings_lost, files_forgotten) = self.arrivals.losses();
        [
            ("images_full", self.arrivals.images_refused),
            ("processes_unjudged", self.judgement.unjudged),
            ("processes_not_shown", self.processes.not_shown),
            ("mappings_lost", mappings_lost),
            ("files_forgotten", files_forgotten),
            ("targets_refused", live.targets),
            ("stacks_refused", live.stacks),
            ("histories_refused", self.verdicts.refused()),
            ("tables_refused", self.unwinding.refused()),
            ("readings_refused", self.inspection.refused()),
            ("unknown_record", self.ring.unknown()),
            ("purges_refused", self.kernel.purges_refused()),
        ]
    }

    fn self_metrics(&self, report: &Report) -> SelfMetrics {
        let live: u64 = report.targets.iter().map(|target| target.task.live).sum();
        let entries = |map: &str| match map {
            "live" => live,
            "counts" => self.live.stacks().count() as u64,
            "stacks" => self.names.known_stacks(),
            _ => self.live.targets().count() as u64,
        };
        let fill = |(map, capacity): (&'static str, u32)| MapFill {
            map,
            entries: entries(map),
            capacity: u64::from(capacity),
        };
        let statuses = ["attached", "partial", "paused", "unsupported"];
        let with_status = |word: &str| {
            report
                .targets
                .iter()
                .filter(|target| target.status.as_str() == word)
                .count() as u64
        };
        let slow_sites: u64 = self.images.iter().map(Image::attached_slow).sum();
        let analyses = self.analyst.counts();
        SelfMetrics {
            events: Event::KINDS.into_iter().zip(self.events).collect(),
            events_dropped: LOSS_NAMES
                .into_iter()
                .zip(self.kernel.loss())
                .chain(self.refused())
                .collect(),
            maps: self.kernel.capacities().map(fill).to_vec(),
            targets: statuses.into_iter().map(|word| (word, with_status(word))).collect(),
            analyses: analyses.outcomes().collect(),
            analyses_not_repeated: analyses.remembered,
            analysis_peak_bytes: analyses.peak_bytes,
            cheap_sites: (self.kernel.attached_sites() as u64).saturating_sub(slow_sites),
            slow_sites,
            census_seconds: self.inspection.census_took.as_secs_f64(),
            census_bytes_read: self.inspection.bytes_read,
            images: self.images.iter().count() as u64,
            files_analysed: self.arrivals.files_analysed(),
            http_evicted: self
                .publisher
                .as_ref()
                .map_or(0, |publisher| publisher.source.evicted.load(Ordering::Relaxed)),
            profiles_pushed: self
                .publisher
                .as_ref()
                .map_or_else(Vec::new, |publisher| publisher.source.pushes.by_outcome()),
            configured: self.configured,
        }
    }
}
