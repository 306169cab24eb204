//! Two reports compared: what grew, what is fixed.
//!
//! In: two reports, the older first, often of two builds or two runs of a program. Out: a [`Comparison`], which
//! `table`, `json` and `svg` show. It reads no file.
//!
//! A callsite of one report is found again in the other by its process, kind, task type and function: ids and lines change
//! with each build. A program's own crate is written `crate`, and processes whose names are in one report only count as
//! one, so that a program may be renamed between the two.

mod json;
mod parse;
mod svg;
mod table;

pub use json::render as json;
pub use parse::{ParseError, parse};
pub use svg::render as svg;
pub use table::render as table;

use super::report::{KindName, Report, Verdict};
use super::{escape, report::CallsiteReport};
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

/// How a callsite changed, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// More live tasks, beyond the tolerance, and the newer report does not call it steady.
    Grew,
    /// Live tasks in the older report, or a leak, and none any more although it was used.
    Fixed,
    /// Live tasks in the older report, and nothing spawned there in the newer one.
    Gone,
    /// Fewer live tasks.
    Shrank,
    /// None of these.
    Same,
}

impl Change {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Grew, Self::Fixed, Self::Gone, Self::Shrank, Self::Same];

    /// The word used in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grew => "grew",
            Self::Fixed => "fixed",
            Self::Gone => "gone",
            Self::Shrank => "shrank",
            Self::Same => "same",
        }
    }
}

/// One callsite's numbers in one report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Alive.
    pub live: u64,
    /// Born.
    pub spawned: u64,
    /// Of those, ended.
    pub ended: u64,
    /// The most urgent one of what is taken together.
    pub verdict: Verdict,
}

const NOTHING: Counts = Counts {
    live: 0,
    spawned: 0,
    ended: 0,
    verdict: Verdict::Steady,
};

/// One callsite in both reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// How it changed.
    pub change: Change,
    /// Kind of its tasks.
    pub kind: KindName,
    /// Their type, the program's own crate written `crate`.
    pub task_type: Option<String>,
    /// The function that spawns them, alike; else image and offset.
    pub function: Option<String>,
    /// `file:line` in the newer report, or in the older one where it is not in the newer.
    pub line: Option<String>,
    /// In the older report; all zero where it is not there.
    pub old: Counts,
    /// In the newer report, alike.
    pub new: Counts,
    /// What the newer report says of it.
    pub evidence: Option<String>,
}

/// Two reports, compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Ordered by change, then by how much.
    pub sites: Vec<Site>,
    /// Live tasks in the older and the newer report.
    pub live: (u64, u64),
    /// Seconds that either was observed.
    pub observed_seconds: (f64, f64),
    /// Folded stacks with the older and the newer live count.
    stacks: BTreeMap<String, (u64, u64)>,
}

impl Comparison {
    /// Compares two reports. A callsite has grown where it has more than `tolerance` live tasks more.
    #[must_use]
    pub fn new(mut old: Report, mut new: Report, tolerance: u64) -> Self {
        make_comparable(&mut old, &mut new);
        let mut sites: BTreeMap<Key, Site> = BTreeMap::new();
        for (report, newer) in [(&old, false), (&new, true)] {
            let processes: HashMap<&str, &str> = report
                .targets
                .iter()
                .map(|target| (target.id.as_str(), target.process_name()))
                .collect();
            for callsite in &report.callsites {
                let process = processes.get(callsite.target.as_str()).copied().unwrap_or_default();
                let site = sites.entry(key(process, callsite)).or_insert_with(|| site_of(callsite));
                site.add(callsite, newer);
            }
        }
        let mut sites: Vec<Site> = sites.into_values().collect();
        for site in &mut sites {
            site.change = change(site.old, site.new, tolerance);
        }
        sites.sort_by_key(|site| (site.change, Reverse(site.new.live.abs_diff(site.old.live))));
        let sum = |count: fn(&Site) -> u64| sites.iter().map(count).sum();
        Self {
            live: (sum(|site| site.old.live), sum(|site| site.new.live)),
            observed_seconds: (old.observed_seconds, new.observed_seconds),
            stacks: svg::stacks(&old, &new),
            sites,
        }
    }

    /// How many callsites changed so.
    #[must_use]
    pub fn count(&self, change: Change) -> usize {
        self.sites.iter().filter(|site| site.change == change).count()
    }
}

impl Site {
    fn add(&mut self, callsite: &CallsiteReport, newer: bool) {
        let counts = if newer { &mut self.new } else { &mut self.old };
        // One that was not there yet has no verdict of its own.
        let first = *counts == NOTHING;
        counts.live += callsite.live;
        counts.spawned += callsite.spawned;
        counts.ended += callsite.ended;
        counts.verdict = if first {
            callsite.verdict
        } else {
            counts.verdict.min(callsite.verdict)
        };
        if newer {
            self.line = line(callsite).or_else(|| self.line.take());
            self.evidence = self.evidence.take().or_else(|| callsite.evidence.clone());
        }
    }
}

/// Process, kind, task type, function.
type Key = (String, KindName, String, String);

fn key(process: &str, callsite: &CallsiteReport) -> Key {
    (
        process.to_owned(),
        callsite.kind,
        callsite.task_type.clone().unwrap_or_default(),
        function(callsite).unwrap_or_default(),
    )
}

fn site_of(callsite: &CallsiteReport) -> Site {
    Site {
        change: Change::Same,
        kind: callsite.kind,
        task_type: callsite.task_type.clone(),
        function: function(callsite),
        line: line(callsite),
        old: NOTHING,
        new: NOTHING,
        evidence: None,
    }
}

fn function(callsite: &CallsiteReport) -> Option<String> {
    let place = &callsite.location;
    escape::code_place(place.function.as_deref(), place.image.as_deref(), place.offset).map(String::from)
}

fn line(callsite: &CallsiteReport) -> Option<String> {
    let place = &callsite.location;
    let file = escape::name(place.file.as_deref()?).into_owned();
    Some(place.line.map_or_else(|| file.clone(), |line| format!("{file}:{line}")))
}

fn change(old: Counts, new: Counts, tolerance: u64) -> Change {
    let was_called_leaking = matches!(old.verdict, Verdict::Leak | Verdict::Suspect);
    if new.live > old.live.saturating_add(tolerance) && new.verdict != Verdict::Steady {
        Change::Grew
    } else if new.live >= old.live {
        Change::Same
    } else if new.spawned == 0 {
        Change::Gone
    } else if new.live == 0 || (was_called_leaking && new.verdict == Verdict::Steady) {
        Change::Fixed
    } else {
        Change::Shrank
    }
}

/// Makes names in both reports the same where a program was renamed.
fn make_comparable(old: &mut Report, new: &mut Report) {
    let names = |report: &Report| -> HashSet<String> {
        let targets = report.targets.iter();
        targets.map(|target| target.process_name().to_owned()).collect()
    };
    let (before, after) = (names(old), names(new));
    let (only_before, only_after): (Vec<&String>, Vec<&String>) =
        (before.difference(&after).collect(), after.difference(&before).collect());
    let renamed = match (only_before[..].as_ref(), only_after[..].as_ref()) {
        ([before], [after]) => format!("{before} → {after}"),
        _ => "[other programs]".to_owned(),
    };
    for report in [old, new] {
        own_crate(report);
        for target in &mut report.targets {
            let name = target.process_name().to_owned();
            if !(before.contains(&name) && after.contains(&name)) {
                target.exe.clone_from(&renamed);
            }
        }
    }
}

/// Writes each program's own crate as `crate`.
fn own_crate(report: &mut Report) {
    let crates: HashMap<String, String> = report
        .targets
        .iter()
        // Cargo names a binary as its crate, which has `_` for `-`.
        .map(|target| (target.id.clone(), target.process_name().replace('-', "_")))
        .collect();
    for callsite in &mut report.callsites {
        let Some(name) = crates.get(&callsite.target).filter(|name| !name.is_empty()) else {
            continue;
        };
        let frames = callsite.stacks.iter_mut().flat_map(|stack| &mut stack.frames);
        let functions = frames.filter_map(|frame| frame.function.as_mut());
        let own = [callsite.task_type.as_mut(), callsite.location.function.as_mut()];
        for text in functions.chain(own.into_iter().flatten()) {
            if let Some(renamed) = with_crate(text, name) {
                *text = renamed;
            }
        }
    }
}

/// The path with `name::` replaced by `crate::` where it begins a path; `None` where it does not occur.
fn with_crate(text: &str, name: &str) -> Option<String> {
    let prefix = format!("{name}::");
    let mut renamed = String::new();
    let mut kept = 0;
    for (at, _) in text.match_indices(&prefix) {
        let inside = text[..at].ends_with(|before: char| before.is_alphanumeric() || matches!(before, '_' | ':'));
        if !inside {
            renamed.push_str(&text[kept..at]);
            renamed.push_str("crate::");
            kept = at + prefix.len();
        }
    }
    if kept == 0 {
        return None;
    }
    renamed.push_str(&text[kept..]);
    Some(renamed)
}

#[cfg(test)]
mod tests;
