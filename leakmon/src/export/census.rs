//! A census: its place in the JSON report, and its own text and JSON.
//!
//! In: numbers by task type, as data; `daemon` and `leakmon census` fill it in. Out: the object `targets[].census`, and what
//! `leakmon census` prints. Names are a target's and are escaped here.

use super::{
    RenderOptions, escape, json,
    report::{KindName, SCHEMA, known_kind},
    shorten,
};
use crate::{
    memory::{
        census::{Census, Tally},
        layout::Layouts,
    },
    symbols::names::one_of,
    targets::plan::ProbePlan,
};
use leakmon_ebpf::abi::Kind;
use serde::{Deserialize, Serialize};
use std::{cmp::Reverse, fmt::Write};

/// Rows of the table; JSON has all.
const ROWS_MAX: usize = 60;
/// Columns that are left for a name, at least.
const NAME_MIN: usize = 20;

/// What a process's memory holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CensusReport {
    /// All types together.
    pub tasks: CensusCounts,
    /// Types that have tasks: most alive first.
    pub types: Vec<CensusType>,
    /// Tasks older than the attach; `None` where there was none, or they are not known yet.
    pub older: Option<OlderCounts>,
    /// Where memory and probes disagree, since the attach; `None` without probes.
    pub disagreement: Option<Disagreement>,
    /// How much of the resident and swapped memory was read, from 0 to 1.
    pub share: f64,
    /// Bytes of the process's memory that were scanned.
    pub scanned_bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// Why it could not be taken, or not as a whole, one sentence.
    pub reason: Option<String>,
}

/// Tasks by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusCounts {
    /// Not ended: idle, scheduled and running together.
    pub alive: u64,
    /// Waiting for a waker, the unwakeable ones included.
    pub idle: u64,
    /// In a run queue.
    pub scheduled: u64,
    /// Being polled.
    pub running: u64,
    /// Of the idle ones, those that no waker can wake.
    pub unwakeable: u64,
    /// Of the unwakeable ones, those that a `JoinHandle` can still abort.
    pub abortable: u64,
    /// Finished, and held by a `JoinHandle` or `JoinSet`.
    pub held: u64,
    /// Finished, and held by wakers or abort handles alone.
    pub lingering: u64,
    /// Memory of all these, where a task's size is known; what the futures own elsewhere is not in it.
    pub bytes: Option<u64>,
    /// Of it, that of the held ones.
    pub held_bytes: Option<u64>,
}

/// One task type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CensusType {
    /// Its name; "one of …" where identical code was merged, `None` where nothing names it. Unescaped.
    pub task_type: Option<String>,
    /// `task`, `local` or `blocking`.
    #[serde(deserialize_with = "known_kind")]
    pub kind: KindName,
    /// Address of its vtable in the image, which tells types without a name apart.
    pub vtable: u64,
    /// Whether it is one of the runtime's own (its worker threads).
    pub runtime_owned: bool,
    /// Bytes of one task.
    pub task_bytes: Option<u32>,
    /// Its tasks.
    #[serde(flatten)]
    pub counts: CensusCounts,
}

/// Tasks older than the attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderCounts {
    /// Found at the attach.
    pub found: u64,
    /// Of them, alive.
    pub live: u64,
}

/// Where memory and probes disagree. Each is a task whose birth or end no probe saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disagreement {
    /// Tasks in memory, born since the attach, that the probes do not count.
    pub unseen_births: u64,
    /// Tasks that the probes count and that are not in memory.
    pub unseen_ends: u64,
}

impl CensusReport {
    /// What was found, with the names of the plan; nothing is known of probes.
    #[must_use]
    pub fn new(taken: &Census, layouts: &Layouts, plan: &ProbePlan) -> Self {
        let mut tasks = CensusCounts::default();
        let mut types = Vec::new();
        for (layout, tally) in layouts.types().iter().zip(&taken.tallies) {
            let counts = CensusCounts::new(tally, layout.bytes);
            tasks.add(&counts);
            let Some(task_type) = plan.task_types.get(layout.task_type) else {
                continue;
            };
            if *tally != Tally::default() {
                types.push(CensusType {
                    task_type: one_of(&task_type.names),
                    kind: kind_name(task_type.kind),
                    vtable: task_type.vtable,
                    runtime_owned: task_type.runtime_owned,
                    task_bytes: layout.bytes,
                    counts,
                });
            }
        }
        sort(&mut types);
        let share = taken.share();
        Self {
            tasks,
            types,
            older: None,
            disagreement: None,
            share,
            scanned_bytes: taken.scanned_bytes,
            seconds: taken.took.as_secs_f64(),
            reason: shortfall(taken, layouts),
        }
    }
}

/// Why the numbers are lower bounds; `None` where they are not.
fn shortfall(taken: &Census, layouts: &Layouts) -> Option<String> {
    let unknown = (layouts.unknown() > 0).then(|| {
        format!(
            "the tasks of {} of {} types can't be found in memory, since their vtables do not say where a task's words lie (tokio \
             older than 1.23), so the numbers are lower bounds",
            layouts.unknown(),
            layouts.unknown() + layouts.types().len(),
        )
    });
    let partial = (taken.share() < 1.0).then(|| partial(taken));
    let reasons: Vec<String> = partial.into_iter().chain(unknown).collect();
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// Why not everything was read.
fn partial(taken: &Census) -> String {
    let read = taken.share() * 100.0;
    let mut reason = format!("{read:.0} % of its memory was read, so the numbers are lower bounds");
    if taken.swapped_bytes > 0 {
        reason.push_str(&format!(
            "; {} are in swap and stay there",
            bytes(Some(taken.swapped_bytes))
        ));
    }
    if taken.refused_tasks > 0 {
        reason.push_str("; there are more tasks than are looked at");
    }
    reason
}

/// The word of the JSON contract for a kind of task.
const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Local => "local",
        Kind::Blocking => "blocking",
        _ => "task",
    }
}

impl CensusCounts {
    /// The counts of one type, each of whose tasks has so many bytes.
    #[must_use]
    pub fn new(tally: &Tally, task_bytes: Option<u32>) -> Self {
        let memory = |tasks: u64| task_bytes.map(|each| u64::from(each) * tasks);
        Self {
            alive: tally.alive(),
            idle: tally.idle,
            scheduled: tally.scheduled,
            running: tally.running,
            unwakeable: tally.unwakeable,
            abortable: tally.abortable,
            held: tally.held,
            lingering: tally.lingering,
            bytes: memory(tally.alive() + tally.held + tally.lingering),
            held_bytes: memory(tally.held),
        }
    }

    /// Adds those of another type. Memory is known where it is for one of them: then it is a lower bound.
    pub fn add(&mut self, other: &Self) {
        self.alive += other.alive;
        self.idle += other.idle;
        self.scheduled += other.scheduled;
        self.running += other.running;
        self.unwakeable += other.unwakeable;
        self.abortable += other.abortable;
        self.held += other.held;
        self.lingering += other.lingering;
        self.bytes = sum(self.bytes, other.bytes);
        self.held_bytes = sum(self.held_bytes, other.held_bytes);
    }
}

fn sum(left: Option<u64>, right: Option<u64>) -> Option<u64> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.saturating_add(right)),
        (one, other) => one.or(other),
    }
}

/// A census by itself: what `leakmon census` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProcessCensus {
    /// Version of the JSON contract.
    pub schema: u32,
    /// The tgid.
    pub pid: u32,
    /// Path of the executable. Unescaped.
    pub exe: String,
    /// Name of the runtime.
    pub runtime: &'static str,
    /// Its version.
    pub runtime_version: Option<String>,
    /// What was found.
    pub census: CensusReport,
}

impl ProcessCensus {
    /// The census of a process.
    #[must_use]
    pub const fn new(
        tgid: u32,
        exe: String,
        runtime: &'static str,
        runtime_version: Option<String>,
        census: CensusReport,
    ) -> Self {
        Self {
            schema: SCHEMA,
            pid: tgid,
            exe,
            runtime,
            runtime_version,
            census,
        }
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Vec<u8> {
        json::bounded(self)
    }

    /// As text for a person.
    #[must_use]
    pub fn table(&self, options: &RenderOptions) -> String {
        let mut out = String::new();
        // Writing to a string can't fail.
        let _ = self.write_table(&mut out, options);
        out
    }

    fn write_table(&self, out: &mut String, options: &RenderOptions) -> std::fmt::Result {
        let census = &self.census;
        let version = self.runtime_version.as_deref().unwrap_or_default();
        let process = self.exe.rsplit('/').next().unwrap_or_default();
        writeln!(
            out,
            "{} (PID {}), {} {}: {} tasks alive, {} finished and held",
            escape::name(process),
            self.pid,
            self.runtime,
            escape::name(version),
            census.tasks.alive,
            census.tasks.held,
        )?;
        writeln!(
            out,
            "read {} in {:.0} ms{}",
            bytes(Some(census.scanned_bytes)),
            census.seconds * 1e3,
            if census.share < 1.0 {
                format!(
                    ", {:.0} % of its memory: the numbers are lower bounds",
                    census.share * 100.0
                )
            } else {
                String::new()
            }
        )?;
        if census.types.is_empty() {
            let found = match census.share < 1.0 {
                true => "No task was found in what was read.",
                false => "It holds no task now.",
            };
            return writeln!(out, "\n{found}");
        }
        writeln!(
            out,
            "\n{:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>10}  {:<8}  TASK TYPE",
            "ALIVE", "IDLE", "SCHEDULED", "RUNNING", "UNWAKEABLE", "HELD", "MEMORY", "KIND"
        )?;
        for row in census.types.iter().take(ROWS_MAX) {
            write_row(out, row, options)?;
        }
        match census.types.len().saturating_sub(ROWS_MAX) {
            0 => {}
            more => writeln!(out, "… and {more} more types (--format json has all)")?,
        }
        write_meaning(out, &census.tasks)
    }
}

fn write_row(out: &mut String, row: &CensusType, options: &RenderOptions) -> std::fmt::Result {
    let counts = &row.counts;
    let numbers = format!(
        "{:>9} {:>9} {:>9} {:>9} {:>10} {:>9} {:>10}  {:<8}  ",
        counts.alive,
        counts.idle,
        counts.scheduled,
        counts.running,
        counts.unwakeable,
        counts.held,
        bytes(counts.bytes),
        row.kind,
    );
    let name = match (&row.task_type, row.runtime_owned) {
        (Some(name), false) => escape::name(name).to_string(),
        (Some(name), true) => format!("{} (the runtime's own)", escape::name(name)),
        (None, _) => format!("[vtable at {:#x}]", row.vtable),
    };
    let width = options.width.map_or(usize::MAX, usize::from);
    let room = width.saturating_sub(numbers.len()).max(NAME_MIN);
    writeln!(out, "{numbers}{}", shorten::middle(&name, room))
}

/// What the rarer columns mean, where they are not empty.
fn write_meaning(out: &mut String, tasks: &CensusCounts) -> std::fmt::Result {
    if tasks.unwakeable > 0 {
        let proven = tasks.unwakeable - tasks.abortable;
        writeln!(
            out,
            "\nUnwakeable: no waker of the task exists. {proven} can only end when their runtime shuts down; {} have a JoinHandle \
             that can still abort them.",
            tasks.abortable
        )?;
    }
    if tasks.held > 0 {
        let memory = tasks
            .held_bytes
            .map_or(String::new(), |held| format!(", {}", bytes(Some(held))));
        writeln!(
            out,
            "\nHeld: finished, but a JoinHandle or a JoinSet that was not drained keeps their memory{memory}."
        )?;
    }
    Ok(())
}

/// Puts the types in order: most alive first, then most held.
pub fn sort(types: &mut [CensusType]) {
    types.sort_by_key(|row| {
        (
            row.runtime_owned,
            Reverse(row.counts.alive),
            Reverse(row.counts.held),
            row.vtable,
        )
    });
}

/// Bytes in the unit that a person would choose.
fn bytes(count: Option<u64>) -> String {
    let Some(count) = count else { return "?".to_owned() };
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests;
