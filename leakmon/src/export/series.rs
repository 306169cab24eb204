//! Which callsites get time series of their own, and what `callsite="other"` counts.
//!
//! In: one report after the other. Out: a [`SeriesTable`] each time, bounded whatever the processes do. It prints
//! nothing.
//!
//! A metrics server keeps every label set that it ever saw, so a process gets few: at most [`Limits::callsites`] of its
//! own and one `other` a kind. For every process and kind these hold, as long as the process lives:
//!
//! 1. A callsite that was given a series keeps it.
//! 2. No counter falls.
//! 3. Over own series and `other`, spawned, ended and live sum to what the report has. (Were a report's counter to
//!    fall, which it must not, rule 2 goes first until the report has caught up.)
//!
//! A series whose function, line or pod becomes known later changes its labels then; its counters go on.
//!
//! A callsite may get its series after `other` has counted it. That count stays in `other`, and the new series begins
//! at 0:
//!
//! ```text
//! own series of c  = count of c − base of c           base: the count of c when it got its series
//! other            = sum over all callsites − sum over own series
//! ```
//!
//! So `other` is the sum over callsites without a series plus all bases: neither term falls. Live counts need no base.
//!
//! Who gets one: three quarters of the slots go to the first callsites that are seen, largest live count first, with
//! base 0 (nobody has counted them before). The last quarter is kept for those that matter later: verdict `leak` or
//! `suspect`, or a live count among the process's ten highest. Else start-up code would use up all slots before the
//! leak begins.

use super::escape;
use super::report::{CallsiteReport, Location, PodNames, Report, TargetReport, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Label of what has no series of its own.
pub const OTHER: &str = "other";

/// A callsite whose live count is among this many highest of its process may take a reserved slot.
const RESERVED_RANKS: usize = 10;

/// Characters of a callsite's id in labels; 48 bits tell a process's few callsites apart.
const SHORT_ID_CHARS: usize = 12;

/// Bounds of the series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Callsites with own series in a process.
    pub callsites: usize,
    /// Processes with series at once.
    pub processes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            callsites: 100,
            processes: 500,
        }
    }
}

/// Labels of a series, escaped and bounded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels {
    /// File name of the executable.
    pub process: String,
    /// The tgid.
    pub tgid: u32,
    /// Kind of the callsite.
    pub kind: &'static str,
    /// Short id, or [`OTHER`].
    pub callsite: String,
    /// Function, empty where unknown.
    pub function: String,
    /// `file:line` or `image+0xoffset`, empty where unknown.
    pub location: String,
    /// The pod's namespace, empty where Kubernetes is not asked.
    pub namespace: String,
    /// The pod, likewise.
    pub pod: String,
    /// The container's name in Kubernetes, else the first digits of its id; empty outside containers.
    pub container: String,
}

/// What a series says now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Values {
    /// Alive.
    pub live: u64,
    /// Counter of births.
    pub spawned: u64,
    /// Counter of ends.
    pub ended: u64,
    /// Age of the oldest that is alive.
    pub oldest_seconds: Option<f64>,
    /// Verdict `leak`.
    pub leak: bool,
}

/// One label set and its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Shared with the tables before and after this one.
    pub labels: Arc<Labels>,
    /// At the time of the report.
    pub values: Values,
}

/// All series at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SeriesTable {
    /// By process in the report's order, own series before `other`.
    pub series: Vec<Series>,
    /// Processes that got no series because [`Limits::processes`] had them, each counted once while it waits.
    pub refused_processes: u64,
}

/// Remembers between reports who has a series. Owned by the daemon's loop.
#[derive(Debug)]
pub struct SeriesBook {
    limits: Limits,
    processes: HashMap<String, ProcessSeries>,
    /// Targets without series in the last report: no more than the report has.
    refused: HashSet<String>,
    refused_total: u64,
}

/// Which parts of a location are known: image, file, function.
type Known = [bool; 3];

/// Key of a callsite in its process.
type Key = (&'static str, String);

#[derive(Debug, Default)]
struct ProcessSeries {
    /// What the labels of all series say.
    kubernetes: Option<PodNames>,
    own: BTreeMap<Key, OwnSeries>,
    other: BTreeMap<&'static str, OtherSeries>,
}

#[derive(Debug)]
struct OwnSeries {
    labels: Arc<Labels>,
    /// How much of the location the labels show.
    known: Known,
    base: Counters,
    shown: Counters,
}

#[derive(Debug)]
struct OtherSeries {
    labels: Arc<Labels>,
    shown: Counters,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    spawned: u64,
    ended: u64,
}

/// The callsites of a process that share an id, added up.
struct Merged<'a> {
    first: &'a CallsiteReport,
    values: Values,
    suspect: bool,
}

impl SeriesBook {
    /// An empty book.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            processes: HashMap::new(),
            refused: HashSet::new(),
            refused_total: 0,
        }
    }

    /// Takes a report and gives the series to show. Processes that have exited or are gone lose theirs.
    ///
    /// Callsites whose target the report does not list are left out, and so is the earlier of two living targets of one
    /// PID (before its exec is noticed), since the two would share their labels.
    pub fn observe(&mut self, report: &Report) -> SeriesTable {
        let targets = shown_targets(report);
        let mut callsites: HashMap<&str, BTreeMap<Key, Merged<'_>>> = HashMap::new();
        for callsite in &report.callsites {
            merge(callsites.entry(&callsite.target).or_default(), callsite);
        }
        let living: HashSet<&str> = targets.iter().map(|target| target.id.as_str()).collect();
        self.processes.retain(|id, _| living.contains(id.as_str()));
        let mut table = SeriesTable::default();
        let mut refused = HashSet::new();
        for target in targets {
            let Some(callsites) = callsites.get(target.id.as_str()) else {
                self.keep_without_callsites(target, &mut table);
                continue;
            };
            if !self.processes.contains_key(&target.id) {
                if self.processes.len() >= self.limits.processes {
                    self.refused_total += u64::from(!self.refused.contains(&target.id));
                    refused.insert(target.id.clone());
                    continue;
                }
                self.processes.insert(target.id.clone(), ProcessSeries::default());
            }
            if let Some(process) = self.processes.get_mut(&target.id) {
                process.promote(target, callsites, self.limits.callsites);
                process.show(target, callsites, &mut table.series);
            }
        }
        self.refused = refused;
        table.refused_processes = self.refused_total;
        table
    }

    fn keep_without_callsites(&mut self, target: &TargetReport, table: &mut SeriesTable) {
        if let Some(process) = self.processes.get_mut(&target.id) {
            process.show(target, &BTreeMap::new(), &mut table.series);
        }
    }
}

/// Targets that have not exited, one a PID.
fn shown_targets(report: &Report) -> Vec<&TargetReport> {
    let mut by_tgid: BTreeMap<u32, usize> = BTreeMap::new();
    for (index, target) in report.targets.iter().enumerate().filter(|(_, target)| !target.exited) {
        by_tgid.insert(target.pid, index);
    }
    by_tgid.into_values().map(|index| &report.targets[index]).collect()
}

fn merge<'a>(merged: &mut BTreeMap<Key, Merged<'a>>, callsite: &'a CallsiteReport) {
    let entry = merged
        .entry((callsite.kind, short_id(&callsite.id)))
        .or_insert_with(|| Merged {
            first: callsite,
            values: Values::default(),
            suspect: false,
        });
    add(
        &mut entry.values,
        &Values {
            live: callsite.live,
            spawned: callsite.spawned,
            ended: callsite.ended,
            oldest_seconds: callsite.oldest_seconds,
            leak: callsite.verdict == Verdict::Leak,
        },
    );
    entry.suspect |= matches!(callsite.verdict, Verdict::Leak | Verdict::Suspect);
}

fn add(sum: &mut Values, values: &Values) {
    sum.live = sum.live.saturating_add(values.live);
    sum.spawned = sum.spawned.saturating_add(values.spawned);
    sum.ended = sum.ended.saturating_add(values.ended);
    sum.leak |= values.leak;
    sum.oldest_seconds = match (sum.oldest_seconds, values.oldest_seconds) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
}

impl ProcessSeries {
    /// Gives free slots away.
    fn promote(&mut self, target: &TargetReport, callsites: &BTreeMap<Key, Merged<'_>>, slots: usize) {
        if self.own.len() >= slots {
            return;
        }
        let mut ranked: Vec<_> = callsites.iter().collect();
        ranked.sort_by_key(|(key, merged)| (std::cmp::Reverse((merged.values.live, merged.values.spawned)), *key));
        let open_slots = slots - slots / 4;
        for (rank, (key, merged)) in ranked.into_iter().enumerate() {
            if self.own.len() >= slots {
                return;
            }
            if self.own.contains_key(key) {
                continue;
            }
            // While open slots are left, whoever was seen before has a series, so this one is new: `other` has no count
            // of it.
            let base = if self.own.len() < open_slots {
                Counters::default()
            } else if merged.suspect || (rank < RESERVED_RANKS && merged.values.live > 0) {
                Counters {
                    spawned: merged.values.spawned,
                    ended: merged.values.ended,
                }
            } else {
                continue;
            };
            self.own
                .insert(key.clone(), OwnSeries::new(target, key, &merged.first.location, base));
        }
    }

    /// Takes names of pod and container, which become known after the first series: once in a process' life.
    fn relabel(&mut self, target: &TargetReport) {
        if target.kubernetes.is_none() || target.kubernetes == self.kubernetes {
            return;
        }
        self.kubernetes.clone_from(&target.kubernetes);
        let owned = self.own.values_mut().map(|own| &mut own.labels);
        for labels in owned.chain(self.other.values_mut().map(|other| &mut other.labels)) {
            Arc::make_mut(labels).set_container(target);
        }
    }

    /// Appends all series of the process. One whose callsite the report lacks stays, with nothing alive.
    fn show(&mut self, target: &TargetReport, callsites: &BTreeMap<Key, Merged<'_>>, table: &mut Vec<Series>) {
        self.relabel(target);
        let mut sums: BTreeMap<&'static str, Counters> = BTreeMap::new();
        let mut others: BTreeMap<&'static str, Values> = BTreeMap::new();
        for (key, merged) in callsites {
            let sum = sums.entry(key.0).or_default();
            sum.spawned = sum.spawned.saturating_add(merged.values.spawned);
            sum.ended = sum.ended.saturating_add(merged.values.ended);
            if !self.own.contains_key(key) {
                add(others.entry(key.0).or_default(), &merged.values);
            }
        }
        let mut owned: BTreeMap<&'static str, Counters> = BTreeMap::new();
        for (key, own) in &mut self.own {
            let merged = callsites.get(key);
            if let Some(merged) = merged {
                own.relabel(target, key, &merged.first.location);
            }
            let values = merged.map(|merged| merged.values).unwrap_or_default();
            own.shown.raise_to(
                values.spawned.saturating_sub(own.base.spawned),
                values.ended.saturating_sub(own.base.ended),
            );
            let owned = owned.entry(key.0).or_default();
            owned.spawned = owned.spawned.saturating_add(own.shown.spawned);
            owned.ended = owned.ended.saturating_add(own.shown.ended);
            table.push(Series {
                labels: Arc::clone(&own.labels),
                values: own.shown.with(values),
            });
        }
        let kinds: BTreeSet<&'static str> = sums.keys().chain(owned.keys()).copied().collect();
        for kind in kinds {
            let sum = sums.get(kind).copied().unwrap_or_default();
            let owned = owned.get(kind).copied().unwrap_or_default();
            let other = self.other.entry(kind).or_insert_with(|| OtherSeries {
                labels: labels(target, kind, OTHER.to_owned(), None),
                shown: Counters::default(),
            });
            other.shown.raise_to(
                sum.spawned.saturating_sub(owned.spawned),
                sum.ended.saturating_sub(owned.ended),
            );
            let values = others.get(kind).copied().unwrap_or_default();
            table.push(Series {
                labels: Arc::clone(&other.labels),
                values: other.shown.with(values),
            });
        }
    }
}

impl OwnSeries {
    fn new(target: &TargetReport, key: &Key, location: &Location, base: Counters) -> Self {
        let labels = labels(target, key.0, key.1.clone(), Some(location));
        Self {
            labels,
            known: known(location),
            base,
            shown: Counters::default(),
        }
    }

    /// Takes a location of which more is known and nothing less: at most three times in a series' life.
    fn relabel(&mut self, target: &TargetReport, key: &Key, location: &Location) {
        let now = known(location);
        if now != self.known && now.iter().zip(self.known).all(|(now, before)| *now || !before) {
            *self = Self {
                shown: self.shown,
                ..Self::new(target, key, location, self.base)
            };
        }
    }
}

fn known(location: &Location) -> Known {
    // The image is shown where there is no file, so it stays known.
    let file = location.file.is_some();
    [file || location.offset.is_some(), file, location.function.is_some()]
}

impl Counters {
    /// Counters only rise, whatever a report says.
    fn raise_to(&mut self, spawned: u64, ended: u64) {
        self.spawned = self.spawned.max(spawned);
        self.ended = self.ended.max(ended);
    }

    /// The gauges of `values` with these counters.
    fn with(self, values: Values) -> Values {
        Values {
            spawned: self.spawned,
            ended: self.ended,
            ..values
        }
    }
}

fn labels(target: &TargetReport, kind: &'static str, callsite: String, location: Option<&Location>) -> Arc<Labels> {
    let function = location
        .and_then(|location| location.function.as_deref())
        .unwrap_or_default();
    let mut labels = Labels {
        process: escape::name(target.process_name()).into_owned(),
        tgid: target.pid,
        kind,
        callsite,
        function: escape::name(function).into_owned(),
        location: location.map(place).unwrap_or_default(),
        namespace: String::new(),
        pod: String::new(),
        container: String::new(),
    };
    labels.set_container(target);
    Arc::new(labels)
}

impl Labels {
    fn set_container(&mut self, target: &TargetReport) {
        if let Some(names) = &target.kubernetes {
            self.namespace = escape::name(&names.namespace).into_owned();
            self.pod = escape::name(&names.pod).into_owned();
            self.container = escape::name(&names.container).into_owned();
        } else {
            self.container = target.container.as_deref().map(short_id).unwrap_or_default();
        }
    }
}

/// `file:line`, or `image+0xoffset`, or nothing. The number is never cut off.
fn place(location: &Location) -> String {
    match (&location.file, location.line) {
        (Some(file), Some(line)) => format!("{}:{line}", escape::name(file)),
        (Some(file), None) => escape::name(file).into_owned(),
        (None, _) => escape::code_place(None, location.image.as_deref(), location.offset)
            .unwrap_or_default()
            .into_owned(),
    }
}

/// The id's first characters, which is also how engines show a container's. [`OTHER`] is no id: those are hexadecimal.
fn short_id(id: &str) -> String {
    id.chars().take(SHORT_ID_CHARS).collect()
}

#[cfg(test)]
mod tests;
