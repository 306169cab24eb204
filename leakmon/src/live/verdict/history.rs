//! How a callsite's counts moved, in a bounded number of samples.
//!
//! In: one [`Sample`] of every site at each round. Out: series at seven scales. A scale keeps the last [`SAMPLES_MAX`] samples,
//! each four times as far apart as those of the scale before: the last half minute by the second, the last day by the hour. All
//! sites are sampled at the same times, which are kept once: so the histories of two sites can be added up.

use super::robust::Point;
use crate::live::StackCount;
use leakmon_ebpf::abi::AGE_CLASSES;
use std::collections::VecDeque;

/// Scales of time.
pub(super) const SCALES: usize = 7;

/// Samples of a scale: enough for a trend over four quarters of four intervals and what lies before them.
pub(super) const SAMPLES_MAX: usize = 24;

/// Samples that a trend is judged by: four quarters of [`QUARTER`] intervals.
pub(super) const TREND: usize = 4 * QUARTER + 1;

/// Intervals of a quarter of a trend.
pub(super) const QUARTER: usize = 4;

/// Bounds of age that are counted: 4^i seconds.
pub(super) const BOUNDS: usize = AGE_CLASSES - 1;

/// Seconds between two samples of a scale.
pub(super) const fn interval(scale: usize) -> f64 {
    4_u64.pow(scale as u32) as f64
}

/// Seconds of an age bound.
pub(super) const fn bound(index: usize) -> f64 {
    4_u64.pow(index as u32) as f64
}

/// When the samples were taken.
#[derive(Debug, Default)]
pub(super) struct Clock {
    began: Option<f64>,
    times: [VecDeque<f64>; SCALES],
}

impl Clock {
    /// Begins a round at `now`, seconds: says which scales take a sample; `None` where none does.
    pub(super) fn round(&mut self, now: f64) -> Option<[bool; SCALES]> {
        self.began.get_or_insert(now);
        let mut due = [false; SCALES];
        for (scale, times) in self.times.iter_mut().enumerate() {
            let slot = |time: f64| (time / interval(scale)).floor();
            due[scale] = times.back().is_none_or(|last| slot(now) > slot(*last));
            if due[scale] {
                if times.len() == SAMPLES_MAX {
                    times.pop_front();
                }
                times.push_back(now);
            }
        }
        due.contains(&true).then_some(due)
    }

    /// Seconds since the first round.
    pub(super) fn elapsed(&self) -> f64 {
        let last = self.times.first().and_then(VecDeque::back);
        last.zip(self.began).map_or(0.0, |(last, began)| last - began)
    }
}

/// A callsite's counts at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Born so far; only differences are used, so it may wrap.
    pub(super) born: u32,
    pub(super) live: u32,
    /// Live tasks that are at least [`bound`] seconds old, as of the sweep.
    pub(super) older: [u32; BOUNDS],
    /// Age of the oldest, seconds.
    pub(super) oldest: f32,
    /// How many are unwakeable, and of them how many nothing can abort; scaled up where a part was read.
    pub(super) unwakeable: u32,
    pub(super) doomed: u32,
}

impl Sample {
    /// The sample of a stack at `now_ns`.
    pub(super) fn of_stack(count: &StackCount, now_ns: u64) -> Self {
        let live = clamp(count.live());
        let mut older = [0; BOUNDS];
        let mut sum = 0_u32;
        for bound in (0..BOUNDS).rev() {
            sum = sum.saturating_add(count.ages[bound + 1]);
            older[bound] = sum;
        }
        let age_ns = count.oldest_born_ns.map_or(0, |born_ns| now_ns.saturating_sub(born_ns));
        // Where a part of them was read the rest is taken to be alike. Where all were, what was born since is not counted.
        let of_sampled = |part: u64, sampled: u64| {
            let is_part = sampled > 0 && sampled.saturating_mul(5) < u64::from(live).saturating_mul(4);
            let all = u128::from(part) * u128::from(live) / u128::from(sampled.max(1));
            clamp(if is_part {
                u64::try_from(all).unwrap_or(u64::MAX)
            } else {
                part
            })
        };
        let states = count.states.unwrap_or_default();
        Self {
            // Wraps on purpose.
            born: count.born as u32,
            live,
            older,
            oldest: age_ns as f32 / 1e9,
            unwakeable: of_sampled(states.unwakeable, states.sampled),
            doomed: of_sampled(states.unwakeable.saturating_sub(states.abortable), states.sampled),
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.born = self.born.wrapping_add(other.born);
        self.live = self.live.saturating_add(other.live);
        for (sum, part) in self.older.iter_mut().zip(other.older) {
            *sum = sum.saturating_add(part);
        }
        self.oldest = self.oldest.max(other.oldest);
        self.unwakeable = self.unwakeable.saturating_add(other.unwakeable);
        self.doomed = self.doomed.saturating_add(other.doomed);
    }

    /// Tasks that have ended so far; wraps as `born` does.
    pub(super) const fn ended(&self) -> u32 {
        self.born.wrapping_sub(self.live)
    }

    /// Median age, seconds, of the tasks that are at least `bound(from)` old; ages are taken to be spread evenly in a class.
    pub(super) fn median_age(&self, from: usize) -> Option<f64> {
        let all = *self.older.get(from)?;
        let half = f64::from(all) / 2.0;
        let class = (from..BOUNDS)
            .rev()
            .find(|index| f64::from(self.older[*index]) >= half)?;
        let above = self.older.get(class + 1).copied().unwrap_or(0);
        let inside = f64::from(self.older[class] - above);
        if inside <= 0.0 {
            return None;
        }
        let low = bound(class);
        let top = if above == 0 {
            f64::from(self.oldest).max(low)
        } else {
            bound(class + 1)
        };
        Some(top - (half - f64::from(above)) / inside * (top - low))
    }
}

fn clamp(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The samples of one site.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    scales: [VecDeque<Sample>; SCALES],
    /// Tasks that had ended when it began.
    ended_before: Option<u32>,
}

impl History {
    /// Adds a sample to the scales that are due.
    pub(super) fn push(&mut self, sample: Sample, due: &[bool; SCALES]) {
        self.ended_before.get_or_insert(sample.ended());
        for (samples, _) in self.scales.iter_mut().zip(due).filter(|(_, due)| **due) {
            if samples.len() == SAMPLES_MAX {
                samples.pop_front();
            }
            samples.push_back(sample);
        }
    }

    /// Adds the samples of a stack that turns out to belong to this site, taken at the same times.
    pub(super) fn merge(&mut self, other: &Self) {
        for (samples, others) in self.scales.iter_mut().zip(&other.scales) {
            while samples.len() < others.len() {
                samples.push_front(Sample::default());
            }
            for (sum, part) in samples.iter_mut().rev().zip(others.iter().rev()) {
                sum.add(part);
            }
        }
        let before = self
            .ended_before
            .unwrap_or(0)
            .wrapping_add(other.ended_before.unwrap_or(0));
        self.ended_before = Some(before);
    }

    /// Tasks that ended since it began.
    pub(super) fn ended(&self) -> u32 {
        let now = self.last().map_or(0, |sample| sample.ended());
        now.wrapping_sub(self.ended_before.unwrap_or(0))
    }

    /// The newest sample.
    pub(super) fn last(&self) -> Option<&Sample> {
        self.scales[0].back()
    }

    /// Whether a scale has enough samples for a trend.
    pub(super) fn has_trend(&self, scale: usize) -> bool {
        self.scales[scale].len() >= TREND
    }

    /// By how much a number rose over the trend of a scale; `None` where there is no trend yet. Cheap: most sites need no more.
    pub(super) fn gain(&self, scale: usize, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        let samples = &self.scales[scale];
        let first = samples.get(samples.len().checked_sub(TREND)?)?;
        Some(value(samples.back()?) - value(first))
    }

    /// The samples of a scale with their times.
    pub(super) fn view<'a>(&'a self, clock: &'a Clock, scale: usize) -> View<'a> {
        let (samples, times) = (&self.scales[scale], &clock.times[scale]);
        let skip = times.len().saturating_sub(samples.len());
        View {
            scale,
            points: times.iter().skip(skip).copied().zip(samples).collect(),
        }
    }

    /// The largest number of tasks older than `bound(index)` in any sample from before `until`, seconds.
    pub(super) fn peak_before(&self, clock: &Clock, index: usize, until: f64) -> u32 {
        let scales = (0..SCALES).flat_map(|scale| self.view(clock, scale).points);
        let before = scales.filter(|(time, _)| *time < until);
        before.map(|(_, sample)| sample.older[index]).max().unwrap_or(0)
    }
}

/// The samples of one scale, oldest first.
pub(super) struct View<'a> {
    pub(super) scale: usize,
    pub(super) points: Vec<(f64, &'a Sample)>,
}

impl<'a> View<'a> {
    /// The last [`TREND`] samples; `None` where there are fewer yet.
    pub(super) fn trend(&self) -> Option<&[(f64, &'a Sample)]> {
        self.points.get(self.points.len().checked_sub(TREND)?..)
    }

    /// A number of every sample.
    pub(super) fn series(points: &[(f64, &Sample)], value: impl Fn(&Sample) -> f64) -> Vec<Point> {
        points.iter().map(|(time, sample)| (*time, value(sample))).collect()
    }

    /// A number at a time between two samples, in proportion; `None` before the first.
    pub(super) fn at(&self, time: f64, value: impl Fn(&Sample) -> f64) -> Option<f64> {
        let after = self.points.iter().position(|(at, _)| *at >= time)?;
        let (late, late_sample) = self.points[after];
        let Some((early, early_sample)) = after.checked_sub(1).map(|before| self.points[before]) else {
            return (late <= time).then(|| value(late_sample));
        };
        let share = (time - early) / (late - early);
        Some(value(early_sample) * (1.0 - share) + value(late_sample) * share)
    }
}

/// Differences over the quarters of a trend, oldest first.
pub(super) fn quarters(trend: &[(f64, &Sample)], value: impl Fn(&Sample) -> f64) -> [f64; 4] {
    let edge = |quarter: usize| trend.get(quarter * QUARTER).map_or(0.0, |(_, sample)| value(sample));
    std::array::from_fn(|quarter| edge(quarter + 1) - edge(quarter))
}

/// Intervals of a trend in which a number rose.
pub(super) fn rises(trend: &[(f64, &Sample)], value: impl Fn(&Sample) -> f64) -> usize {
    trend
        .windows(2)
        .filter(|pair| value(pair[1].1) > value(pair[0].1))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(born: u32, live: u32) -> Sample {
        Sample {
            born,
            live,
            ..Sample::default()
        }
    }

    /// Counts of live tasks, one a second.
    fn history(clock: &mut Clock, lives: impl IntoIterator<Item = u32>) -> History {
        let mut history = History::default();
        for (second, live) in lives.into_iter().enumerate() {
            if let Some(due) = clock.round(second as f64) {
                history.push(sample(live, live), &due);
            }
        }
        history
    }

    #[test]
    fn a_day_takes_no_more_room_than_its_scales() {
        let mut clock = Clock::default();
        let history = history(&mut clock, 0..100_000);
        for scale in 0..SCALES {
            let view = history.view(&clock, scale);
            let apart = view
                .points
                .windows(2)
                .all(|pair| pair[1].0 - pair[0].0 == interval(scale));
            assert!(apart && view.points.len() <= SAMPLES_MAX, "{scale}");
        }
        assert_eq!(history.view(&clock, 0).points.len(), SAMPLES_MAX);
        let first = history.view(&clock, SCALES - 1).points[0];
        assert!(first.0 <= 12_288.0, "{first:?}");
    }

    #[test]
    fn twice_a_second_is_once_a_second() {
        let mut clock = Clock::default();
        let due: Vec<bool> = (0..8)
            .map(|half| clock.round(f64::from(half) / 2.0).is_some())
            .collect();
        assert_eq!(due, [true, false, true, false, true, false, true, false]);
        assert_eq!(clock.elapsed(), 3.0);
    }

    #[test]
    fn a_stack_that_joins_late_was_always_there() {
        let mut clock = Clock::default();
        let (mut site, mut stack) = (History::default(), History::default());
        let mut both = History::default();
        for second in 0..300_u32 {
            let Some(due) = clock.round(f64::from(second)) else {
                continue;
            };
            let parts = [sample(second, second / 2), sample(3 * second, second)];
            site.push(parts[0], &due);
            // It appears later.
            if second >= 100 {
                stack.push(parts[1], &due);
            }
            let mut sum = parts[0];
            if second >= 100 {
                sum.add(&parts[1]);
            }
            both.push(sum, &due);
        }
        site.merge(&stack);
        for scale in 0..SCALES {
            assert_eq!(
                site.view(&clock, scale).points,
                both.view(&clock, scale).points,
                "{scale}"
            );
        }
        assert_eq!(site.ended(), both.ended() - 100 * 2);
    }

    #[test]
    fn the_median_age_lies_between_the_bounds_of_its_class() {
        let ages = |older, oldest| Sample {
            older,
            oldest,
            ..Sample::default()
        };
        // Ages spread evenly from 0 to 100 s: half of those above 4 s are above 52 s.
        let even = ages([99, 96, 84, 36, 0, 0, 0], 100.0);
        assert!((even.median_age(1).unwrap() - 52.0).abs() < 1.0);
        assert_eq!(ages([0; BOUNDS], 0.5).median_age(0), None);
        assert_eq!(even.median_age(4), None);
    }

    #[test]
    fn a_number_between_two_samples_is_in_proportion() {
        let mut clock = Clock::default();
        let history = history(&mut clock, [10, 20, 40]);
        let view = history.view(&clock, 0);
        let at = |time| view.at(time, |sample| f64::from(sample.live));
        assert_eq!((at(0.0), at(0.5), at(1.75)), (Some(10.0), Some(15.0), Some(35.0)));
        assert_eq!((at(-0.1), at(2.1)), (None, None));
    }
}
