//! Which columns fit a page, and where the last one goes.
//!
//! In: the callsites to show and a width. Out: columns with their widths. It writes nothing.

use super::spot::{self, Spot};
use crate::export::report::CallsiteReport;
use crate::export::{age, escape, shorten};

/// With fewer columns than that, types and locations are not cut to stand beside the counts; they get lines of their
/// own.
const WHERE_MIN: usize = 60;

/// One column of the table before the last, by its heading.
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) right: bool,
    pub(super) cell: fn(&CallsiteReport) -> String,
}

const fn column(heading: &'static str, right: bool, cell: fn(&CallsiteReport) -> String) -> Column {
    Column { heading, right, cell }
}

/// In the order in which they are shown. A narrow page leaves out ENDED and KIND.
const COLUMNS: [Column; 7] = [
    column("PID", true, |callsite| callsite.pid.to_string()),
    column("LIVE", true, |callsite| callsite.live.to_string()),
    column("SPAWNED", true, |callsite| callsite.spawned.to_string()),
    column("ENDED", true, |callsite| callsite.ended.to_string()),
    column("OLDEST", true, |callsite| {
        callsite.oldest_seconds.map_or_else(|| "-".to_owned(), age::human)
    }),
    column("VERDICT", false, |callsite| callsite.verdict.as_str().to_owned()),
    column("KIND", false, |callsite| callsite.kind.to_owned()),
];

/// Columns that fit, with their widths, and where WHERE goes.
pub(super) struct Layout {
    pub(super) columns: Vec<(&'static Column, usize)>,
    pub(super) gap: usize,
    pub(super) place: Place,
}

/// Where a callsite's type and location are shown.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Place {
    /// Behind the other columns, on one line.
    Beside(usize),
    /// Behind the other columns, type and location below each other.
    Stacked(usize),
    /// On lines of their own.
    Below,
}

impl Layout {
    /// The layout in which no count is cut, and names as little as can be.
    pub(super) fn new(callsites: &[CallsiteReport], width: usize) -> Self {
        let one_process = callsites.windows(2).all(|pair| pair[0].pid == pair[1].pid);
        let widest = |column: &'static Column| {
            let cells = callsites
                .iter()
                .map(|callsite| shorten::columns(&(column.cell)(callsite)));
            (column, cells.max().unwrap_or(0).max(column.heading.len()))
        };
        let mut columns: Vec<_> = COLUMNS
            .iter()
            .filter(|column| !(one_process && column.heading == "PID"))
            .map(widest)
            .collect();
        let total = |columns: &[(&Column, usize)], gap| columns.iter().map(|(_, column)| column + gap).sum::<usize>();
        let room = width.saturating_sub(total(&columns, 2));
        // Width of the widest line that WHERE would have, uncut.
        let widest_line = |lines: fn(Option<&str>, Option<&Spot<'_>>) -> Vec<String>| {
            let all = callsites.iter().flat_map(move |callsite| {
                let type_name = callsite.task_type.as_deref().map(escape::name);
                lines(type_name.as_deref(), Spot::of_callsite(callsite).as_ref())
            });
            all.map(|line| shorten::columns(&line)).max().unwrap_or(0)
        };
        if widest_line(|type_name, spot| vec![spot::beside(type_name, spot, usize::MAX)]) <= room {
            return Self {
                columns,
                gap: 2,
                place: Place::Beside(room),
            };
        }
        if room >= WHERE_MIN || widest_line(|type_name, spot| spot::stacked(type_name, spot, usize::MAX)) <= room {
            return Self {
                columns,
                gap: 2,
                place: Place::Stacked(room),
            };
        }
        for dispensable in ["ENDED", "KIND"] {
            if total(&columns, 1) > width + 1 {
                columns.retain(|(column, _)| column.heading != dispensable);
            }
        }
        let gap = if total(&columns, 2) <= width + 2 { 2 } else { 1 };
        Self {
            columns,
            gap,
            place: Place::Below,
        }
    }
}
