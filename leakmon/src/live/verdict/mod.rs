//! Verdicts on callsites, each with its evidence in one sentence.
//!
//! In: [`Live`] once a second or less often, the callsite of every stack, as far as it is known, and the time. Out: a
//! [`Judgement`] of every callsite. Pure: no IO, no clock, no names. One file a rule; `calm` says what holds where no rule finds
//! anything, `standing` keeps a verdict from flickering, `evidence` puts a finding into words.
//!
//! | finding | verdict |
//! | --- | --- |
//! | unwakeable tasks become more, and nothing can abort them | `leak` |
//! | survivors grow and their age drifts, over a quarter of an hour and with a horizon of minutes | `leak` |
//! | not one task has ended in more than an hour, and they go on being spawned | `leak` |
//! | the same over a minute; unwakeable tasks that an abort can end become more | `suspect` |
//! | none of these | `steady`; `unknown` where it is too early or too little to say |
//!
//! History is kept by callsite. A stack whose names are not known yet has a history of its own, which is added to its callsite's
//! as soon as it joins: all samples are taken at the same times, so the sum is what the callsite would have had. A history begins
//! with what is there at its first sample, and only differences are judged: so a daemon that was restarted begins anew, with counts
//! that are old and no growth. What belongs to a target goes when [`Live`] forgets the target.

mod age_drift;
mod calm;
mod evidence;
mod growth;
mod history;
mod never_ending;
mod robust;
mod standing;
mod unwakeable;

use super::{Live, StackKey};
use calm::Calm;
use growth::Growth;
use history::{Clock, History, SCALES, Sample, TREND, View, interval};
use leakmon_ebpf::abi::TargetId;
use serde::{Deserialize, Serialize};
use standing::{Found, Standing};
use std::collections::HashMap;
use unwakeable::Unwakeable;

/// Callsites whose history is kept, over all targets; about 8 KiB each after a day.
pub const CALLSITES_MAX: usize = 4096;

/// Scale (intervals of 64 s, horizon 4 min) from which on growth that is kept is a leak: after 21 minutes.
const LEAK_SCALE: usize = 3;

/// Scale (intervals of 256 s) from which on a site that never ends is a leak: after 73 minutes.
const NEVER_ENDING_LEAK_SCALE: usize = 4;

/// Scale (intervals of 4 s) from which on a finding is a suspicion; that of a second counts only before this one has a trend.
const SUSPECT_SCALE: usize = 1;

/// What leakmon thinks of a callsite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It leaks.
    Leak,
    /// It may leak.
    Suspect,
    /// Not yet known.
    #[default]
    Unknown,
    /// It does not leak.
    Steady,
}

impl Verdict {
    /// The word used in JSON, labels and tables.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::Suspect => "suspect",
            Self::Unknown => "unknown",
            Self::Steady => "steady",
        }
    }
}

/// A callsite in a target; the number is the callsite's id, see `symbols::callsite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallsiteKey {
    /// The process.
    pub target: TargetId,
    /// The callsite in it.
    pub callsite: u64,
}

/// What is thought of a callsite, and why.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    /// The verdict that stands.
    pub verdict: Verdict,
    /// Why, one sentence.
    pub evidence: Option<String>,
    /// Slope of the live count over the last minute and a half, or as much of it as there is; `None` before the ninth second.
    pub growth_per_minute: Option<f64>,
}

/// Whose history it is: the callsite's, or that of a stack that has no callsite yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Callsite(CallsiteKey),
    Stack(StackKey),
}

/// Judges all callsites. Owned by the daemon's loop.
#[derive(Debug, Default)]
pub struct Verdicts {
    clock: Clock,
    sites: HashMap<Owner, Site>,
    refused: u64,
}

#[derive(Debug, Default)]
struct Site {
    history: History,
    /// A stack has joined: what was found at any scale was found without it.
    has_joined: bool,
    unwakeable: unwakeable::Follower,
    /// What the last trend of each scale showed.
    growths: [Option<(Growth, Option<f64>)>; SCALES],
    never_ending: [Option<f64>; SCALES],
    standing: Standing,
    /// What the verdict that stands was found by.
    finding: Option<Finding>,
}

/// What speaks for a verdict.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Finding {
    Unwakeable(Unwakeable),
    /// With the drift of the median age, where there is one.
    Growth(Growth, Option<f64>),
    /// Births, and seconds.
    NeverEnding(f64, f64),
    Calm(Calm),
}

impl Verdicts {
    /// Takes what is live at `now_ns`, right after a sweep. `callsite_of` gives the callsite of a stack once it is known. Called
    /// more often than once a second it only sorts stacks into callsites.
    pub fn observe(&mut self, live: &Live, callsite_of: impl Fn(StackKey) -> Option<u64>, now_ns: u64) {
        let now = now_ns as f64 / 1e9;
        let due = self.clock.round(now);
        let mut samples: HashMap<Owner, Option<Sample>> = HashMap::new();
        for (key, count) in live.stacks() {
            let owner = self.owner(key, callsite_of(key));
            let lives = live.target(key.target).is_some_and(|target| target.exited_ns.is_none());
            // What a process left behind changes no more: its verdicts stay as they were.
            let sample = samples.entry(owner).or_insert_with(|| lives.then(Sample::default));
            if let Some(sample) = sample {
                sample.add(&Sample::of_stack(count, now_ns));
            }
        }
        self.sites.retain(|owner, _| samples.contains_key(owner));
        let Some(due) = due else {
            return;
        };
        for (owner, sample) in samples {
            let Some(sample) = sample else { continue };
            if self.sites.len() >= CALLSITES_MAX && !self.sites.contains_key(&owner) {
                self.refused += 1;
                continue;
            }
            let site = self.sites.entry(owner).or_default();
            site.take(sample, &due, &self.clock, now);
        }
    }

    /// What is thought of a callsite; nothing is known of one that has no history yet.
    #[must_use]
    pub fn of(&self, key: CallsiteKey) -> Judgement {
        let Some(site) = self.sites.get(&Owner::Callsite(key)) else {
            return Judgement::default();
        };
        Judgement {
            verdict: site.standing.verdict,
            evidence: site.finding.as_ref().map(evidence::sentence),
            growth_per_minute: site.growth_per_minute(&self.clock),
        }
    }

    /// The verdict alone.
    #[must_use]
    pub fn verdict(&self, key: CallsiteKey) -> Verdict {
        let site = self.sites.get(&Owner::Callsite(key));
        site.map_or(Verdict::Unknown, |site| site.standing.verdict)
    }

    /// Callsites beyond [`CALLSITES_MAX`], counted at each sight.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Whose sample the stack's count belongs to. One that has just joined its callsite takes its history there.
    fn owner(&mut self, key: StackKey, callsite: Option<u64>) -> Owner {
        let alone = Owner::Stack(key);
        let Some(callsite) = callsite else {
            return alone;
        };
        let owner = Owner::Callsite(CallsiteKey {
            target: key.target,
            callsite,
        });
        if let Some(joining) = self.sites.remove(&alone) {
            match self.sites.get_mut(&owner) {
                Some(site) => {
                    site.history.merge(&joining.history);
                    site.has_joined = true;
                }
                None => {
                    self.sites.insert(owner, joining);
                }
            }
        }
        owner
    }
}

impl Site {
    fn take(&mut self, sample: Sample, due: &[bool; SCALES], clock: &Clock, now: f64) {
        self.history.push(sample, due);
        self.unwakeable.take(&sample, now);
        let has_joined = std::mem::take(&mut self.has_joined);
        for scale in (0..SCALES).filter(|scale| due[*scale] || has_joined) {
            self.growths[scale] = growth::judge(&self.history, clock, scale)
                .map(|growth| (growth, age_drift::judge(&self.history, clock, scale)));
            self.never_ending[scale] = never_ending::judge(&self.history, clock, scale);
        }
        let (found, finding) = self.find(clock);
        let before = self.standing.verdict;
        self.standing.take(found, sample.live, now);
        // While a verdict stands that is not found just now, what it was found by goes on speaking for it.
        if found.verdict == self.standing.verdict || before != self.standing.verdict {
            self.finding = Some(finding);
        }
    }

    /// What the rules say now, the strongest first.
    fn find(&self, clock: &Clock) -> (Found, Finding) {
        let found = |verdict, span, finding| (Found { verdict, span }, finding);
        let alarm = |verdict, span, finding| Some(found(verdict, span, finding));
        let span = |scale: usize| (TREND - 1) as f64 * interval(scale);
        let unwakeable = self.unwakeable.judge();
        let lasting = self.growths[LEAK_SCALE..]
            .iter()
            .flatten()
            .find(|(growth, drift)| growth.kept && drift.is_some());
        let never = |from: usize| (from..SCALES).find_map(|scale| Some((scale, self.never_ending[scale]?)));
        // That of a second only while there is no other.
        let first = if self.history.has_trend(SUSPECT_SCALE) {
            SUSPECT_SCALE
        } else {
            0
        };
        let doomed = unwakeable.filter(|unwakeable| unwakeable.doomed);
        let leak = doomed
            .and_then(|unwakeable| alarm(Verdict::Leak, unwakeable.span, Finding::Unwakeable(unwakeable)))
            .or_else(|| {
                let (growth, drift) = lasting?;
                alarm(Verdict::Leak, span(growth.scale), Finding::Growth(*growth, *drift))
            })
            .or_else(|| {
                let (scale, births) = never(NEVER_ENDING_LEAK_SCALE)?;
                alarm(Verdict::Leak, span(scale), Finding::NeverEnding(births, span(scale)))
            });
        let suspect = || {
            if clock.elapsed() < calm::WATCHED_MIN {
                return None;
            }
            let growth = self.growths[first..].iter().flatten().last();
            growth
                .and_then(|(growth, drift)| {
                    alarm(Verdict::Suspect, span(growth.scale), Finding::Growth(*growth, *drift))
                })
                .or_else(|| {
                    let unwakeable = unwakeable?;
                    alarm(Verdict::Suspect, unwakeable.span, Finding::Unwakeable(unwakeable))
                })
                .or_else(|| {
                    let (scale, births) = never(first)?;
                    alarm(Verdict::Suspect, span(scale), Finding::NeverEnding(births, span(scale)))
                })
        };
        leak.or_else(suspect).unwrap_or_else(|| {
            let calm = calm::judge(&self.history, clock);
            let verdict = if calm.is_steady() {
                Verdict::Steady
            } else {
                Verdict::Unknown
            };
            found(verdict, 0.0, Finding::Calm(calm))
        })
    }

    fn growth_per_minute(&self, clock: &Clock) -> Option<f64> {
        let enough = |view: &View<'_>| view.points.len() > TREND / 2;
        let view = Some(self.history.view(clock, SUSPECT_SCALE))
            .filter(enough)
            .or_else(|| Some(self.history.view(clock, 0)).filter(enough))?;
        let slope = robust::theil_sen(&View::series(&view.points, |sample| f64::from(sample.live)))?;
        // A tenth of a task a minute is as exact as anybody reads it. No minus zero.
        Some((slope * 600.0).round() / 10.0 + 0.0)
    }
}

#[cfg(test)]
mod tests;
