//! What leakmon says of the corpus, and how often it is right.
//!
//! In: scenarios and seeds. Out: for each run the verdicts and the times they took; over all, precision and recall; the whole as a
//! document. The kernel's readings go through [`Live`] as they do in the daemon.

use super::{
    corpus::{SCENARIOS, Scenario},
    simulation::{Followed, STACKS, TARGET, at_ns, memory, reading},
};
use leakmon::{
    kernel::{event::Event, recording::Entry},
    live::{
        Live, StackKey,
        verdict::{CallsiteKey, Verdict, Verdicts},
    },
};
use std::fmt::Write as _;

/// Seconds until a stack has names, as a loaded machine needs them.
const NAMES_AFTER: f64 = 1.5;

/// What came of one scenario with one seed.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) leaks: bool,
    /// The verdict on the subject at the end, with its evidence.
    pub(crate) verdict: Verdict,
    pub(crate) evidence: String,
    /// When the subject was first called at least a suspect, and a leak.
    pub(crate) suspect_at: Option<f64>,
    pub(crate) leak_at: Option<f64>,
    /// Whether the subject stood first when it was first called so, and stands first at the end.
    pub(crate) first: bool,
    /// Whether anything healthy was ever called a leak, and whether anything healthy is a suspect at the end.
    pub(crate) false_leak: bool,
    pub(crate) false_suspect: bool,
}

impl Outcome {
    /// A leak is found, first, and nothing else is called one; the healthy one was never called one and is no suspect at the end.
    pub(crate) fn is_right(&self) -> bool {
        let found = self.verdict == Verdict::Leak && self.first;
        !self.false_leak && !self.false_suspect && (!self.leaks || found)
    }
}

/// Runs one scenario.
pub(crate) fn run(scenario: &Scenario, seed: u64) -> Outcome {
    let sites = scenario.sites(seed);
    let mut followed: Vec<Followed> = sites.iter().map(Followed::new).collect();
    let (mut live, mut verdicts) = (Live::default(), Verdicts::default());
    live.apply(&Event::Target {
        target: TARGET,
        time_ns: at_ns(0.0),
    });
    let mut outcome = Outcome {
        name: scenario.name,
        leaks: scenario.leaks,
        verdict: Verdict::Unknown,
        evidence: String::new(),
        suspect_at: None,
        leak_at: None,
        first: true,
        false_leak: false,
        false_suspect: false,
    };
    let rounds = scenario.seconds as u64;
    for number in 1..=rounds {
        // A timer is never quite on time.
        let now = number as f64 + (number * 7 % 10) as f64 / 200.0;
        replay(&mut live, reading(&mut followed, number, now));
        for (key, states) in memory(&followed, number, now) {
            live.set_states(StackKey::from(key), Some(states));
        }
        let named = now > NAMES_AFTER;
        let callsite_of = |key: StackKey| named.then_some(key.stack / STACKS);
        verdicts.observe(&live, callsite_of, at_ns(now));
        let of = |index: usize| {
            let callsite = index as u64;
            verdicts.verdict(CallsiteKey {
                target: TARGET,
                callsite,
            })
        };
        outcome.false_leak |= (0..sites.len()).any(|index| !sites[index].leaks && of(index) == Verdict::Leak);
        let subject = of(0);
        let alarm = |verdict| matches!(verdict, Verdict::Leak | Verdict::Suspect);
        let stands_first = || (1..sites.len()).all(|other| of(other) > subject);
        if alarm(subject) && outcome.suspect_at.is_none() {
            outcome.suspect_at = Some(now);
            outcome.first &= stands_first();
        }
        if subject == Verdict::Leak && outcome.leak_at.is_none() {
            outcome.leak_at = Some(now);
            outcome.first &= stands_first();
        }
        if number == rounds {
            outcome.first &= stands_first();
            outcome.false_suspect = (0..sites.len()).any(|index| !sites[index].leaks && alarm(of(index)));
        }
    }
    let judgement = verdicts.of(CallsiteKey {
        target: TARGET,
        callsite: 0,
    });
    outcome.verdict = judgement.verdict;
    outcome.evidence = judgement.evidence.unwrap_or_default();
    outcome
}

/// Takes the entries of a recording.
fn replay(live: &mut Live, entries: Vec<Entry>) {
    let (mut counts, mut ages) = (Vec::new(), Vec::new());
    for entry in entries {
        match entry {
            Entry::Event(event) => live.apply(&event),
            Entry::Count(key, value) => counts.push((key, value)),
            Entry::Ages(key, value) => ages.push((key, value)),
            Entry::Reading { sweep, now_ns } => live.read(&counts, &ages, sweep, now_ns),
        }
    }
}

/// Runs the whole corpus with some seeds, a scenario's outcomes together. One thread a seed.
pub(crate) fn run_all(seeds: impl IntoIterator<Item = u64>) -> Vec<Vec<Outcome>> {
    let threads: Vec<_> = seeds
        .into_iter()
        .map(|seed| {
            std::thread::spawn(move || SCENARIOS.iter().map(|scenario| run(scenario, seed)).collect::<Vec<_>>())
        })
        .collect();
    let mut by_scenario: Vec<Vec<Outcome>> = SCENARIOS.iter().map(|_| Vec::new()).collect();
    for thread in threads {
        let Ok(outcomes) = thread.join() else {
            panic!("a scenario panicked");
        };
        for (all, outcome) in by_scenario.iter_mut().zip(outcomes) {
            all.push(outcome);
        }
    }
    by_scenario
}

/// Right and wrong calls of `leak`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Score {
    pub(crate) runs: usize,
    pub(crate) right: usize,
    pub(crate) found: usize,
    pub(crate) missed: usize,
    pub(crate) false_leaks: usize,
}

impl Score {
    pub(crate) fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Self {
        let mut score = Self::default();
        for outcome in outcomes {
            score.runs += 1;
            score.right += usize::from(outcome.is_right());
            score.found += usize::from(outcome.leaks && outcome.verdict == Verdict::Leak);
            score.missed += usize::from(outcome.leaks && outcome.verdict != Verdict::Leak);
            score.false_leaks += usize::from(outcome.false_leak);
        }
        score
    }

    pub(crate) fn precision(&self) -> f64 {
        self.found as f64 / (self.found + self.false_leaks).max(1) as f64
    }

    pub(crate) fn recall(&self) -> f64 {
        self.found as f64 / (self.found + self.missed).max(1) as f64
    }
}

/// The results as a table of Markdown, and the score under it.
pub(crate) fn table(by_scenario: &[Vec<Outcome>]) -> String {
    let mut text =
        String::from("| scenario | leaks | right | suspect after | leak after | evidence of the first seed |\n");
    text.push_str("| --- | --- | ---: | ---: | ---: | --- |\n");
    for outcomes in by_scenario {
        let Some(first) = outcomes.first() else { continue };
        let right = outcomes.iter().filter(|outcome| outcome.is_right()).count();
        let times = |of: fn(&Outcome) -> Option<f64>| {
            let mut times: Vec<f64> = outcomes.iter().filter_map(of).collect();
            times.sort_by(f64::total_cmp);
            let middle = times.get(times.len() / 2).map(|time| human(*time));
            middle.map_or_else(|| "–".to_owned(), |middle| format!("{middle} ({})", times.len()))
        };
        // Writing to a string can't fail.
        let _ = writeln!(
            text,
            "| {} | {} | {right} of {} | {} | {} | {}: {} |",
            first.name,
            if first.leaks { "yes" } else { "no" },
            outcomes.len(),
            times(|outcome| outcome.suspect_at),
            times(|outcome| outcome.leak_at),
            first.verdict.as_str(),
            first.evidence,
        );
    }
    let score = Score::of(by_scenario.iter().flatten());
    let _ = writeln!(
        text,
        "\n{} of {} runs right; `leak`: precision {:.3}, recall {:.3}.",
        score.right,
        score.runs,
        score.precision(),
        score.recall()
    );
    text
}

fn human(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} min", seconds / 60.0)
    }
}
