//! The calm site: nothing grows, and how one sees that.
//!
//! In: a site's history where no rule found anything. Out: why it is steady; or, where it is too early, or where it grows too
//! little to say, why it is not known.

use super::history::{Clock, History, SCALES, View, interval, quarters};

/// Seconds that any verdict takes: what was born at the attach is old by then at the finest scale, and the next scale is not yet
/// needed.
pub(super) const WATCHED_MIN: f64 = 30.0;

/// Growth of the live count within the time looked at, as a part of it, that is taken for noise.
const NOISE_SHARE: f64 = 0.1;

/// And tasks.
const NOISE_TASKS: f64 = 2.0;

/// Why no rule found anything.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Calm {
    /// Not watched for long enough.
    Early,
    /// It grows, but by too little, or not for long enough, or too many end.
    Growing { from: u32, to: u32, span: f64 },
    /// None is alive.
    Empty,
    /// No task was spawned, or what is alive stays.
    Still { live: u32, span: f64 },
    /// Tasks come and go.
    Turnover { low: u32, high: u32, span: f64 },
}

impl Calm {
    /// Whether the site is known to be steady.
    pub(super) const fn is_steady(self) -> bool {
        !matches!(self, Self::Early | Self::Growing { .. })
    }
}

/// Looks at the coarsest scale that has a trend.
pub(super) fn judge(history: &History, clock: &Clock) -> Calm {
    let scale = (0..SCALES).rev().find(|scale| history.has_trend(*scale));
    let Some(scale) = scale.filter(|_| clock.elapsed() >= WATCHED_MIN) else {
        return Calm::Early;
    };
    let view = history.view(clock, scale);
    let (Some(trend), Some(now)) = (view.trend(), history.last()) else {
        return Calm::Early;
    };
    let span = trend
        .last()
        .zip(trend.first())
        .map_or(0.0, |(last, first)| last.0 - first.0);
    if now.live == 0 {
        return Calm::Empty;
    }
    let live = View::series(trend, |sample| f64::from(sample.live));
    let low = live.iter().map(|point| point.1).fold(f64::MAX, f64::min);
    let high = live.iter().map(|point| point.1).fold(0.0, f64::max);
    if still_grows(trend) {
        let from = trend.first().map_or(0, |(_, sample)| sample.live);
        return Calm::Growing {
            from,
            to: now.live,
            span,
        };
    }
    let first = trend.first().map_or(0, |(_, sample)| sample.born);
    if now.born == first || low == high {
        return Calm::Still { live: now.live, span };
    }
    Calm::Turnover {
        low: low as u32,
        high: high as u32,
        span: span.max(interval(scale)),
    }
}

/// Whether the live count rose in both halves by more than noise.
fn still_grows(trend: &[(f64, &super::history::Sample)]) -> bool {
    let live = quarters(trend, |sample| f64::from(sample.live));
    let last = trend.last().map_or(0.0, |(_, sample)| f64::from(sample.live));
    let noise = (last * NOISE_SHARE).max(NOISE_TASKS);
    live[0] + live[1] > noise / 2.0 && live[2] + live[3] > noise / 2.0 && live.iter().sum::<f64>() > noise
}
