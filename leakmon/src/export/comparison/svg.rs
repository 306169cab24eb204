//! A comparison as one flame graph: red grew, blue shrank, what vanished still stands.
//!
//! inferno gives each stack the width of one of the two counts, so what has none of it can't be seen. The report
//! with more live tasks gives the width: a leak's tower is there, before its repair and after it.

use super::Comparison;
use crate::export::{RenderOptions, folded, report::Report, svg};
use std::collections::BTreeMap;

/// The comparison as SVG.
#[must_use]
pub fn render(comparison: &Comparison) -> Vec<u8> {
    let (old, new) = comparison.live;
    let by_old = old > new;
    let lines: Vec<String> = comparison
        .stacks
        .iter()
        .map(|(stack, (before, after))| {
            if by_old {
                format!("{stack} {after} {before}")
            } else {
                format!("{stack} {before} {after}")
            }
        })
        .collect();
    let widths = if by_old { "older" } else { "newer" };
    let title = format!("Alive: {old} before, {new} after; blue is fewer, red is more; widths of the {widths} report");
    svg::differential(&lines, &title, by_old)
}

/// Folded stacks with the live counts of both reports.
pub(super) fn stacks(old: &Report, new: &Report) -> BTreeMap<String, (u64, u64)> {
    let mut stacks: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for (report, newer) in [(old, false), (new, true)] {
        let text = folded::render(report, &RenderOptions::default());
        for line in String::from_utf8_lossy(&text).lines() {
            let Some((stack, count)) = line.rsplit_once(' ') else {
                continue;
            };
            let counts = stacks.entry(stack.to_owned()).or_default();
            let count: u64 = count.parse().unwrap_or(0);
            if newer {
                counts.1 += count;
            } else {
                counts.0 += count;
            }
        }
    }
    stacks
}
