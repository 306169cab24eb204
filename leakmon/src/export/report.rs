//! The report: what every output format is made from.
//!
//! In: nothing, it is data; `daemon.rs` builds it from `live` and `symbols`. Out: the JSON contract (`"schema": 1`,
//! fields are only ever added: one that older reports lack is read as absent). It does not choose what is shown: the formats do.

pub use crate::live::verdict::Verdict;

use super::census::CensusReport;
use super::filter::KINDS;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::sync::Arc;

/// Version of the JSON contract.
pub const SCHEMA: u32 = 1;

/// Stacks of a callsite that JSON shows; the other formats use all of them.
pub const JSON_STACKS_MAX: usize = 10;

/// Everything that leakmon knows at one moment. Strings from targets are unescaped here: each format escapes for
/// itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Since the first attach.
    pub observed_seconds: f64,
    /// By ascending process.
    pub targets: Vec<TargetReport>,
    /// Leaks first, then by live count, then by id.
    pub callsites: Vec<CallsiteReport>,
    /// What was refused or lost, over all targets.
    pub loss: LossReport,
}

impl Report {
    /// The callsites that `--fail-on-leak` fails on: leaks, and what a process that has ended is suspected of.
    pub fn leaks(&self) -> impl Iterator<Item = &CallsiteReport> {
        let ended = |callsite: &CallsiteReport| {
            let mut targets = self.targets.iter();
            targets.any(|target| target.id == callsite.target && target.exited)
        };
        self.callsites.iter().filter(move |callsite| match callsite.verdict {
            Verdict::Leak => true,
            Verdict::Suspect => ended(callsite),
            Verdict::Unknown | Verdict::Steady => false,
        })
    }
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// `PID-…`, unique over PID reuse and exec.
    pub id: String,
    /// The tgid; the JSON contract calls it `pid`.
    pub pid: u32,
    /// Path of the executable.
    pub exe: String,
    /// Build id of the executable, hexadecimal.
    pub build_id: Option<String>,
    /// Name of the runtime.
    pub runtime: Option<String>,
    /// Its version.
    pub runtime_version: Option<String>,
    /// How well it is watched.
    pub status: TargetStatus,
    /// Why, where the status is not `attached`.
    pub reason: Option<String>,
    /// Attached probe sites.
    pub sites: SiteCounts,
    /// Kinds task, local and blocking together.
    pub task: EntityCounts,
    /// Threads; `None` where they are not followed.
    pub thread: Option<EntityCounts>,
    /// Whether the process has ended.
    #[serde(default)]
    pub exited: bool,
    /// What its memory holds; `None` where no census was taken.
    #[serde(default)]
    pub census: Option<CensusReport>,
    /// Id of the container that the process is in, 64 hexadecimal digits.
    #[serde(default)]
    pub container: Option<String>,
    /// Uid of the pod, in Kubernetes.
    #[serde(default)]
    pub pod_uid: Option<String>,
    /// What Kubernetes calls the container, where its API server is asked.
    #[serde(default)]
    pub kubernetes: Option<PodNames>,
}

/// What Kubernetes calls a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNames {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// The container in it.
    pub container: String,
}

impl TargetReport {
    /// File name of the executable. Unescaped.
    #[must_use]
    pub fn process_name(&self) -> &str {
        self.exe
            .rsplit('/')
            .find(|part| !part.is_empty())
            .unwrap_or("[unknown]")
    }
}

/// How well a target is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetStatus {
    /// Every task type is followed.
    Attached,
    /// Some are not: see the reason.
    Partial,
    /// It had too many hits: births are not tracked for a while.
    Paused,
    /// It can't be watched.
    Unsupported,
}

impl TargetStatus {
    /// The word used in JSON and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Attached => "attached",
            Self::Partial => "partial",
            Self::Paused => "paused",
            Self::Unsupported => "unsupported",
        }
    }
}

/// Probe sites of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteCounts {
    /// Birth sites.
    pub spawn: u64,
    /// Completion sites.
    pub end: u64,
    /// Those of both that the kernel single-steps.
    pub slow: u64,
}

/// Cumulative counts of tasks or threads; `live` = `spawned` − `ended`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityCounts {
    /// Born since the attach.
    pub spawned: u64,
    /// Of those, ended.
    pub ended: u64,
    /// Of those, alive.
    pub live: u64,
}

/// One of [`KINDS`].
pub type KindName = &'static str;

/// One callsite in one target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallsiteReport {
    /// Sixteen hexadecimal digits, stable across runs and hosts for one build.
    pub id: String,
    /// [`TargetReport::id`].
    pub target: String,
    /// The tgid.
    pub pid: u32,
    /// `task`, `local`, `blocking`, `held`, `thread`.
    #[serde(deserialize_with = "known_kind")]
    pub kind: KindName,
    /// Alive now.
    pub live: u64,
    /// Born since the attach.
    pub spawned: u64,
    /// Of those, and of those born before it, ended.
    pub ended: u64,
    /// Found at the attach, older than it: these have a row of their own. `live` = this + `spawned` − `ended`, but for kind `held`.
    #[serde(default)]
    pub born_before_attach: u64,
    /// Memory of the tasks, of kind `held`, in bytes, where a task's size is known.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Age of the oldest that is alive.
    pub oldest_seconds: Option<f64>,
    /// Slope of the live count, once it can be known.
    pub growth_per_minute: Option<f64>,
    /// What leakmon thinks of it.
    pub verdict: Verdict,
    /// Why, one sentence.
    pub evidence: Option<String>,
    /// States of the live tasks, once they can be known.
    pub states: Option<StateCounts>,
    /// Type of the future; "one of …" where identical code was merged.
    pub task_type: Option<String>,
    /// Innermost frame of the user's code.
    pub location: Location,
    /// By descending live count.
    #[serde(serialize_with = "first_stacks")]
    pub stacks: Vec<StackReport>,
}

/// States of the live tasks that were sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StateCounts {
    /// How many were read.
    pub sampled: u64,
    /// Waiting.
    pub idle: u64,
    /// In a run queue.
    pub scheduled: u64,
    /// Being polled.
    pub running: u64,
    /// Idle with no waker left.
    pub unwakeable: u64,
}

/// Where a callsite is, as a person would say it. Every field is `None` where it can't be known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Function.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// File name of the image, where there is no function name to show.
    pub image: Option<String>,
    /// Offset in that image's file.
    pub offset: Option<u64>,
}

/// One stack of a callsite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StackReport {
    /// Tasks alive that were born with it.
    pub live: u64,
    /// Tasks born with it.
    pub spawned: u64,
    /// Age of the oldest of them that is alive.
    pub oldest_seconds: Option<f64>,
    /// Whether the walk reached the thread's start.
    pub complete: bool,
    /// Innermost first, inlined functions before the function they were inlined into.
    pub frames: Vec<Frame>,
}

/// One frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frame {
    /// Demangled, without hash; `None` where no symbol covers the address.
    pub function: Option<String>,
    /// Source file.
    pub file: Option<String>,
    /// Line, from 1.
    pub line: Option<u32>,
    /// File name of the image; `None` where no mapping is known.
    pub image: Option<String>,
    /// Build id of the image, hexadecimal. Not in JSON: it would be there thousands of times.
    #[serde(skip)]
    pub build_id: Option<Arc<str>>,
    /// Offset in the image's file (of the return address, but for the innermost frame), or the bare address where no
    /// mapping is known.
    pub offset: u64,
    /// Inlined into the next frame.
    pub inlined: bool,
}

/// What was refused or lost. Live counts stay right whatever `events_dropped` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LossReport {
    /// Events that found the ring full.
    pub events_dropped: u64,
    /// Births that are untracked since the table of live tasks was full.
    pub live_full: u64,
    /// Births that are untracked since the table of callsites was full.
    pub counts_full: u64,
    /// Births that are untracked since their target was paused.
    pub paused: u64,
    /// Hits of processes that found no room among the targets.
    pub targets_full: u64,
    /// Images that are not probed, since too many are or none of their sites could be attached.
    #[serde(default)]
    pub images_full: u64,
    /// Processes that had gone before the rules could be asked about them; they are not shown.
    #[serde(default)]
    pub processes_unjudged: u64,
    /// Births counted under their site alone, since the stack table was full.
    pub stacks_full: u64,
    /// Stacks that do not reach the thread's start.
    pub stacks_truncated: u64,
    /// Ends of untracked tasks, where they can't be those of older ones.
    pub untracked_ends: u64,
    /// Ends of tasks whose birth was not seen, such as those older than the attach.
    pub unmatched_ends: u64,
    /// Tasks that were freed without completing, noticed when their memory was used again.
    pub replaced: u64,
}

/// A kind by its name; a report of a later version may have others.
pub(super) fn known_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known = KINDS.into_iter().find(|kind| *kind == name);
    known.ok_or_else(|| D::Error::custom(format!("no kind is called {name:?} here")))
}

fn first_stacks<S: Serializer>(stacks: &[StackReport], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(stacks.iter().take(JSON_STACKS_MAX))
}
