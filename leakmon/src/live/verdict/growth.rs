//! Growth of survivors: ever more tasks get old, and hardly any of the old ones ends.
//!
//! In: the samples of one scale. Out: a [`Growth`], where there is one. At every scale *old* means older than four intervals, so
//! that short tasks, be there ever so many, are not looked at; what counts is what becomes of the tasks that have got old. Three
//! things must come together:
//!
//! 1. Their number rises, by the Mann–Kendall test, in each quarter of the time, and more than a few times: no step, no burst, no
//!    warm-up that is over.
//! 2. They stay: of those that were old a while ago next to none has ended since, beside them and beside those that have got old
//!    meanwhile. A population that follows its load has as many ends as births; one that fills up has some.
//! 3. They have never been that many, nor nearly: what rises again after it fell follows a period.

use super::{
    history::{Clock, History, SCALES, Sample, View, bound, interval, quarters, rises},
    robust::{mann_kendall, theil_sen},
};

/// Fewer old tasks than this prove nothing: chance alone moves the number by four (its square root).
const TASKS_MIN: f64 = 16.0;

/// Standard deviations of the Mann–Kendall test: one in a thousand by chance.
const TREND_MIN: f64 = 3.0;

/// Each quarter must have at least this part of the mean quarter's growth.
const QUARTER_SHARE_MIN: f64 = 0.25;

/// Intervals, of the sixteen, in which the number must have risen: a few steps are no growth.
pub(super) const RISES_MIN: usize = 6;

/// Ends of old tasks, as a part of those that were old, and of those that have got old meanwhile. The first says how long old tasks
/// live: of those that stay for four hours a twentieth ends in thirteen minutes. The second says how much of the way to its level a
/// population has come. Up to this it may be a leak.
const ENDED_SUSPECT_MAX: f64 = 0.20;
/// Up to this it is one, if it lasts,
const ENDED_LEAK_MAX: f64 = 0.05;
/// and if this many were old: with fewer it may be chance that none ended.
const WAS_OLD_MIN: f64 = 20.0;

/// Tasks by which a number between two samples may be off.
const BETWEEN_SAMPLES: f64 = 1.0;

/// When the growth began there must have been this part of the highest number before: else it has fallen in between.
const FORMER_PEAK_SHARE: f64 = 0.8;

/// Scales that can be judged: an age bound above the horizon is needed.
const SCALES_JUDGED: usize = SCALES - 1;

/// Growth of survivors at one scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Growth {
    pub(super) scale: usize,
    /// What counts as old, seconds.
    pub(super) horizon: f64,
    /// Old tasks now.
    pub(super) old: f64,
    /// More of them each minute.
    pub(super) per_minute: f64,
    /// Of `was` tasks that were old `gap` seconds ago, `ended` have ended.
    pub(super) was: f64,
    pub(super) ended: f64,
    pub(super) gap: f64,
    /// Whether so few end that it is a leak, if it lasts.
    pub(super) kept: bool,
}

/// Judges one scale.
pub(super) fn judge(history: &History, clock: &Clock, scale: usize) -> Option<Growth> {
    if scale >= SCALES_JUDGED {
        return None;
    }
    // Of the last scale the age bounds allow a shorter horizon only.
    let horizon = (scale + 1).min(SCALES - 2);
    let old = |sample: &Sample| f64::from(sample.older[horizon]);
    let gained = history.gain(scale, old)?;
    if gained < TASKS_MIN {
        return None;
    }
    let view = history.view(clock, scale);
    let trend = view.trend()?;
    let (first, last) = (trend.first()?, trend.last()?);
    let least = gained / 4.0 * QUARTER_SHARE_MIN;
    // Those that get old now were born a horizon ago: younger ones say whether they still come.
    let still = quarters(trend, |sample| f64::from(sample.older[horizon - 1]))[3];
    if still < least || quarters(trend, old).iter().any(|quarter| *quarter < least) {
        return None;
    }
    let series = View::series(trend, old);
    if rises(trend, old) < RISES_MIN || mann_kendall(&series) < TREND_MIN {
        return None;
    }
    let turnover = turnover(&view, horizon, last.0)?;
    if turnover.share() > ENDED_SUSPECT_MAX {
        return None;
    }
    let peak = history.peak_before(clock, horizon, first.0);
    if old(first.1) < f64::from(peak) * FORMER_PEAK_SHARE {
        return None;
    }
    Some(Growth {
        scale,
        horizon: bound(horizon),
        old: old(last.1),
        per_minute: theil_sen(&series)? * 60.0,
        was: turnover.was,
        ended: turnover.ended,
        gap: turnover.gap,
        kept: turnover.was >= WAS_OLD_MIN && turnover.share() <= ENDED_LEAK_MAX,
    })
}

/// What became of the tasks that were old.
struct Turnover {
    was: f64,
    ended: f64,
    /// Got old meanwhile and are still alive.
    new: f64,
    gap: f64,
}

impl Turnover {
    fn share(&self) -> f64 {
        let of = |all: f64| if all > 0.0 { self.ended / all } else { 0.0 };
        of(self.was).max(of(self.new))
    }
}

/// All tasks older than H at one time that are alive are the ones older than 4 H three H later. `None` before there are any.
/// Of two times the worse counts, so that one reading that was off by a moment proves nothing.
fn turnover(view: &View<'_>, horizon: usize, now: f64) -> Option<Turnover> {
    let gap = bound(horizon + 1) - bound(horizon);
    let at = |time: f64| {
        let was = view.at(time - gap, |sample| f64::from(sample.older[horizon]))?;
        let still = view.at(time, |sample| f64::from(sample.older[horizon + 1]))?;
        let old = view.at(time, |sample| f64::from(sample.older[horizon]))?;
        Some(Turnover {
            was,
            ended: (was - still - BETWEEN_SAMPLES).max(0.0),
            new: old - still,
            gap,
        })
    };
    let (now, before) = (at(now)?, at(now - interval(view.scale)));
    Some(before.filter(|before| before.share() > now.share()).unwrap_or(now))
}
