//! Age drift: the old tasks get older with the clock, although new ones come.
//!
//! In: the samples of one scale. Out: how fast the median age of the old tasks grows. In a population that is steady it stays
//! where it is; where nothing ends and as many come as before it grows by half a second a second. A fixed pool drifts as well, so
//! drift alone is no leak: it confirms growth.

use super::{
    history::{Clock, History, SCALES, View},
    robust::theil_sen,
};

/// Half of what a leak of constant rate has, so that one whose rate doubles within the time still drifts.
const MEDIAN_DRIFT_MIN: f64 = 0.25;

/// The oldest task must be nearly the same one throughout.
const OLDEST_DRIFT_MIN: f64 = 0.9;

/// How much older the median of the old tasks gets, in seconds a second, where both it and the oldest drift.
pub(super) fn judge(history: &History, clock: &Clock, scale: usize) -> Option<f64> {
    let view = history.view(clock, scale);
    let trend = view.trend()?;
    let horizon = (scale + 1).min(SCALES - 2);
    let medians = View::series(trend, |sample| sample.median_age(horizon).unwrap_or(0.0));
    let oldest = View::series(trend, |sample| f64::from(sample.oldest));
    let drift = theil_sen(&medians)?;
    (drift >= MEDIAN_DRIFT_MIN && theil_sen(&oldest)? >= OLDEST_DRIFT_MIN).then_some(drift)
}
