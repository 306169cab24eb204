//! What a request may read: the latest snapshot and the event loop's heartbeat.
//!
//! In: a report, series and own numbers, published by the daemon's loop as one [`Snapshot`]. Out: text, made once a
//! snapshot and shared by all who ask. A snapshot never changes, so a request never waits for the loop, nor the loop
//! for a request.

use super::filter::Filter;
use super::report::{LossReport, Report, SCHEMA};
use super::series::SeriesTable;
use super::{Format, RenderOptions, metrics};
use crate::self_metrics::SelfMetrics;
use bytes::Bytes;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Everything that requests are answered from.
#[derive(Debug)]
pub struct Snapshot {
    /// The report.
    pub report: Report,
    /// The series that the report's callsites got.
    pub series: SeriesTable,
    /// leakmon's own numbers.
    pub own: SelfMetrics,
    /// Whether probes are attached.
    pub ready: bool,
    /// Whole texts, made by the first request: however many clients read slowly, there is one copy of each.
    metrics: OnceLock<Result<Bytes, String>>,
    json: OnceLock<Bytes>,
    folded: OnceLock<Bytes>,
    pprof: OnceLock<Bytes>,
    svg: OnceLock<Bytes>,
}

impl Snapshot {
    /// A snapshot of these.
    #[must_use]
    pub fn new(report: Report, series: SeriesTable, own: SelfMetrics, ready: bool) -> Self {
        Self {
            report,
            series,
            own,
            ready,
            metrics: OnceLock::new(),
            json: OnceLock::new(),
            folded: OnceLock::new(),
            pprof: OnceLock::new(),
            svg: OnceLock::new(),
        }
    }

    /// What is served before the first report: nothing, and not ready.
    #[must_use]
    pub fn initial() -> Self {
        let report = Report {
            schema: SCHEMA,
            observed_seconds: 0.0,
            targets: Vec::new(),
            callsites: Vec::new(),
            loss: LossReport::default(),
        };
        Self::new(report, SeriesTable::default(), SelfMetrics::default(), false)
    }

    /// Prometheus text.
    ///
    /// # Errors
    ///
    /// As [`metrics::render`].
    pub fn metrics(&self, filter: &Filter) -> Result<Bytes, String> {
        let render = || metrics::render(&self.series, &self.report.loss, &self.own, filter).map(Bytes::from);
        if filter.is_all() {
            self.metrics.get_or_init(render).clone()
        } else {
            render()
        }
    }

    /// The JSON report.
    #[must_use]
    pub fn json(&self, filter: &Filter) -> Bytes {
        self.rendered(&self.json, Format::Json, filter)
    }

    /// Folded stacks.
    #[must_use]
    pub fn folded(&self, filter: &Filter) -> Bytes {
        self.rendered(&self.folded, Format::Folded, filter)
    }

    /// A gzipped profile.
    #[must_use]
    pub fn pprof(&self, filter: &Filter) -> Bytes {
        self.rendered(&self.pprof, Format::Pprof, filter)
    }

    /// A flame graph.
    #[must_use]
    pub fn svg(&self, filter: &Filter) -> Bytes {
        self.rendered(&self.svg, Format::Svg, filter)
    }

    fn rendered(&self, whole: &OnceLock<Bytes>, format: Format, filter: &Filter) -> Bytes {
        let render = || {
            Bytes::from(super::render(
                format,
                &filter.apply(&self.report),
                &RenderOptions::default(),
            ))
        };
        if filter.is_all() {
            whole.get_or_init(render).clone()
        } else {
            render()
        }
    }
}

/// When the event loop last said that it runs.
#[derive(Debug)]
pub struct Heartbeat {
    origin: Instant,
    /// Milliseconds from `origin` to the last beat.
    last_ms: AtomicU64,
}

impl Heartbeat {
    /// A heartbeat whose first beat is `origin`.
    #[must_use]
    pub const fn since(origin: Instant) -> Self {
        Self {
            origin,
            last_ms: AtomicU64::new(0),
        }
    }

    /// The loop runs.
    pub fn beat(&self) {
        let now_ms = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Relaxed: the number is all that is shared.
        self.last_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Time since the last beat.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.origin
            .elapsed()
            .saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;
    use crate::export::series::{Limits, SeriesBook};

    #[test]
    fn whole_texts_are_made_once_and_parts_are_not_kept() {
        let report = samples::busy();
        let series = SeriesBook::new(Limits::default()).observe(&report);
        let snapshot = Snapshot::new(report, series, samples::own(), true);
        let part = Filter {
            tgid: Some(83_920),
            kind: None,
        };
        for text in [Snapshot::json, Snapshot::folded, |s: &Snapshot, f: &Filter| {
            s.metrics(f).unwrap()
        }] {
            let small = text(&snapshot, &part);
            let whole = text(&snapshot, &Filter::default());
            assert!(small.len() < whole.len());
            assert_eq!(whole.as_ptr(), text(&snapshot, &Filter::default()).as_ptr());
            assert_eq!(small, text(&snapshot, &part));
        }
    }

    #[test]
    fn a_beat_makes_the_heartbeat_young() {
        let minute = Duration::from_secs(60);
        let heartbeat = Heartbeat::since(Instant::now().checked_sub(minute).unwrap());
        assert!(heartbeat.age() >= minute);
        heartbeat.beat();
        assert!(heartbeat.age() < minute);
    }
}
