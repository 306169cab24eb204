//! The site whose tasks never end: births go on, and not one end has been seen.
//!
//! In: the samples of one scale. Out: how many were born. It needs fewer tasks than growth does, since there is no turnover to be
//! told from. A fixed pool is told apart by its births, which stop.

use super::{
    growth::RISES_MIN,
    history::{Clock, History, Sample, quarters, rises},
};

/// Births within the time of the scale. With fewer a pool that grows to its size looks the same.
const BIRTHS_MIN: f64 = 8.0;

/// Tasks born within the time of the scale, where none has ended and births are spread over all quarters of it.
pub(super) fn judge(history: &History, clock: &Clock, scale: usize) -> Option<f64> {
    if history.ended() > 0 || !history.has_trend(scale) {
        return None;
    }
    let view = history.view(clock, scale);
    let trend = view.trend()?;
    let first = trend.first()?.1.born;
    let born = |sample: &Sample| f64::from(sample.born.wrapping_sub(first));
    let births = quarters(trend, born);
    let all: f64 = births.iter().sum();
    (all >= BIRTHS_MIN && rises(trend, born) >= RISES_MIN && births.iter().all(|quarter| *quarter >= 1.0))
        .then_some(all)
}
