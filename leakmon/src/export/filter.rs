//! `?pid=` and `?kind=`: a part of a report.
//!
//! In: a report. Out: the same report with fewer processes and callsites. It never changes a count.

use super::report::Report;
use std::borrow::Cow;

/// Kinds of callsites, as [`super::report::CallsiteReport::kind`] has them.
pub const KINDS: [&str; 5] = ["task", "local", "blocking", "held", "thread"];

/// Which part is wanted. The default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// This process only.
    pub tgid: Option<u32>,
    /// This kind only, one of [`KINDS`].
    pub kind: Option<&'static str>,
}

impl Filter {
    /// Whether it lets everything through.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Whether it lets callsites of this process and kind through.
    #[must_use]
    pub fn matches(&self, tgid: u32, kind: &str) -> bool {
        self.tgid.is_none_or(|wanted| wanted == tgid) && self.kind.is_none_or(|wanted| wanted == kind)
    }

    /// The part of the report. What was lost is known for all targets together and stays.
    #[must_use]
    pub fn apply<'a>(&self, report: &'a Report) -> Cow<'a, Report> {
        if self.is_all() {
            return Cow::Borrowed(report);
        }
        Cow::Owned(Report {
            schema: report.schema,
            observed_seconds: report.observed_seconds,
            targets: report
                .targets
                .iter()
                .filter(|t| self.tgid.is_none_or(|wanted| wanted == t.pid))
                .cloned()
                .collect(),
            callsites: report
                .callsites
                .iter()
                .filter(|c| self.matches(c.pid, c.kind))
                .cloned()
                .collect(),
            loss: report.loss,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;

    #[test]
    fn a_part_has_what_was_asked_for_and_no_more() {
        let report = samples::busy();
        for (tgid, kind, targets, callsites) in [
            (None, None, 2, 4),
            (Some(83_920), None, 1, 3),
            (Some(83_920), Some("task"), 1, 2),
            (None, Some("thread"), 2, 1),
            (Some(1), None, 0, 0),
        ] {
            let part = Filter { tgid, kind }.apply(&report).into_owned();
            assert_eq!(
                (part.targets.len(), part.callsites.len()),
                (targets, callsites),
                "{tgid:?} {kind:?}"
            );
            assert_eq!(part.loss, report.loss);
        }
    }
}
