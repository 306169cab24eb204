//! Live counts over the last reports, for the sparklines.
//!
//! In: reports. Out: a callsite's last counts. It forgets what a report no longer has, so it holds no more callsites than a
//! report does.

use super::Id;
use crate::export::report::Report;
use std::collections::{HashMap, VecDeque};

/// Counts that are kept; one a report, so two minutes where reports come by the second.
pub(super) const COUNTS_MAX: usize = 120;

/// The counts of all callsites.
#[derive(Debug, Default)]
pub(super) struct Trails(HashMap<Id, VecDeque<u64>>);

impl Trails {
    pub(super) fn take(&mut self, report: &Report) {
        let mut before = std::mem::take(&mut self.0);
        for callsite in &report.callsites {
            let id = super::id(callsite);
            let mut counts = before.remove(&id).unwrap_or_default();
            if counts.len() == COUNTS_MAX {
                counts.pop_front();
            }
            counts.push_back(callsite.live);
            self.0.insert(id, counts);
        }
    }

    /// The last counts as a line of blocks, the newest last: from nothing to the highest that is shown.
    pub(super) fn line(&self, id: &Id, columns: usize) -> String {
        const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        let Some(counts) = self.0.get(id) else {
            return String::new();
        };
        let shown = counts.iter().skip(counts.len().saturating_sub(columns));
        let highest = shown.clone().copied().max().unwrap_or(0).max(1);
        let block = |count: &u64| {
            let step = u128::from(*count) * (BLOCKS.len() as u128 - 1) / u128::from(highest);
            BLOCKS[usize::try_from(step).unwrap_or(0).min(BLOCKS.len() - 1)]
        };
        shown.map(block).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;

    #[test]
    fn a_trail_is_bounded_and_goes_with_its_callsite() {
        let mut trails = Trails::default();
        let mut report = samples::busy();
        let id = super::super::id(&report.callsites[0]);
        for live in 0..COUNTS_MAX as u64 + 7 {
            report.callsites[0].live = live;
            trails.take(&report);
        }
        assert_eq!(trails.0[&id].len(), COUNTS_MAX);
        assert_eq!(trails.line(&id, 4).chars().count(), 4);
        trails.take(&samples::empty());
        assert!(trails.0.is_empty());
        assert_eq!(trails.line(&id, 4), "");
    }

    #[test]
    fn a_line_reaches_from_nothing_to_the_highest() {
        let mut trails = Trails::default();
        let mut report = samples::busy();
        let id = super::super::id(&report.callsites[0]);
        for live in [0, 7, 14, u64::MAX, 0] {
            report.callsites[0].live = live;
            trails.take(&report);
        }
        assert_eq!(trails.line(&id, 9), "▁▁▁█▁");
    }
}
