//! Findings in words: one sentence each, with the numbers that a person would check.
//!
//! In: a [`Finding`]. Out: its sentence. It decides nothing.

use super::{Finding, calm::Calm, growth::Growth, unwakeable::Unwakeable};

/// The sentence of a finding.
pub(super) fn sentence(finding: &Finding) -> String {
    match finding {
        Finding::Unwakeable(unwakeable) => of_unwakeable(unwakeable),
        Finding::Growth(growth, drift) => of_growth(growth, *drift),
        Finding::NeverEnding(births, span) => format!(
            "{births:.0} tasks were spawned in {}, and not one that was spawned here has ended since leakmon watches.",
            time(*span)
        ),
        Finding::Calm(calm) => of_calm(calm),
    }
}

fn of_unwakeable(unwakeable: &Unwakeable) -> String {
    let Unwakeable { tasks, span, doomed } = unwakeable;
    let end = if *doomed {
        "nothing but the runtime's shutdown can end them"
    } else {
        "only an abort through their handles can end them"
    };
    format!(
        "{tasks} tasks have no waker left and were ever more over {}: {end}.",
        time(*span)
    )
}

fn of_growth(growth: &Growth, drift: Option<f64>) -> String {
    let fate = match (growth.was.round() as u64, growth.ended.round() as u64) {
        (0, _) => String::new(),
        (1, 0) => format!(", and the one that was so old {} ago is still alive", time(growth.gap)),
        (was, 0) => format!(
            ", and of {was} that were so old {} ago none has ended",
            time(growth.gap)
        ),
        (was, ended) => format!(
            ", and of {was} that were so old {} ago only {ended} ended",
            time(growth.gap)
        ),
    };
    let drift = drift.map_or_else(String::new, |drift| {
        format!(
            "; half of them are older than a time that grows by {:.0} s a minute",
            drift * 60.0
        )
    });
    format!(
        "{:.0} tasks are older than {}, steadily {} more a minute{fate}{drift}.",
        growth.old,
        time(growth.horizon),
        rate(growth.per_minute)
    )
}

fn of_calm(calm: &Calm) -> String {
    match *calm {
        Calm::Early => format!("Too early to say: a verdict takes {}.", time(super::calm::WATCHED_MIN)),
        Calm::Growing { from, to, span } => {
            format!("It grew from {from} to {to} in {}: not enough to say.", time(span))
        }
        Calm::Empty => "No task is alive.".to_owned(),
        Calm::Still { live, span } => format!("The number alive has been {live} for {}.", time(span)),
        Calm::Turnover { low, high, span } => format!(
            "Tasks end as others come: between {low} and {high} were alive in {}.",
            time(span)
        ),
    }
}

/// Whole numbers from ten on, else one digit more.
fn rate(per_minute: f64) -> String {
    if per_minute >= 10.0 {
        format!("{per_minute:.0}")
    } else {
        format!("{per_minute:.1}")
    }
}

/// A time in the unit that a person would choose.
fn time(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_sentence() {
        let growth = Growth {
            scale: 3,
            horizon: 256.0,
            old: 1020.4,
            per_minute: 59.9,
            was: 252.0,
            ended: 0.0,
            gap: 768.0,
            kept: true,
        };
        for (finding, sentence) in [
            (
                Finding::Growth(growth, Some(0.5)),
                "1020 tasks are older than 4 min, steadily 60 more a minute, and of 252 that were so old 13 min ago none has \
                 ended; half of them are older than a time that grows by 30 s a minute.",
            ),
            (
                Finding::Growth(
                    Growth {
                        ended: 3.0,
                        per_minute: 1.25,
                        horizon: 4096.0,
                        ..growth
                    },
                    None,
                ),
                "1020 tasks are older than 68 min, steadily 1.2 more a minute, and of 252 that were so old 13 min ago only 3 \
                 ended.",
            ),
            (
                Finding::Unwakeable(Unwakeable {
                    tasks: 30,
                    span: 25.0,
                    doomed: true,
                }),
                "30 tasks have no waker left and were ever more over 25 s: nothing but the runtime's shutdown can end them.",
            ),
            (
                Finding::NeverEnding(24.0, 64.0),
                "24 tasks were spawned in 64 s, and not one that was spawned here has ended since leakmon watches.",
            ),
            (
                Finding::Calm(Calm::Turnover {
                    low: 3,
                    high: 9,
                    span: 16_384.0,
                }),
                "Tasks end as others come: between 3 and 9 were alive in 4.6 h.",
            ),
        ] {
            assert_eq!(super::sentence(&finding), sentence);
        }
    }
}
