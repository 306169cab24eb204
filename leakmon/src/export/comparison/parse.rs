//! A JSON report, read back.
//!
//! In: bytes that anybody may have written. Out: a [`Report`], or a sentence that says what is wrong. Sizes are bounded
//! by the caller's bytes; counts are bounded here, so that sums of them can't overflow.

use crate::export::report::{Report, SCHEMA};
use serde::Deserialize;

/// Largest count that is believed. No process holds as many tasks, and a million callsites of it still add up.
const COUNT_MAX: u64 = 1 << 40;

/// Why bytes are no report.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// It is no JSON, or lacks what a report has.
    #[error("not a leakmon report: {0}: give a file made with --format json")]
    Form(serde_json::Error),
    /// Another version of the contract.
    #[error("a report of schema {0}; this leakmon reads schema {SCHEMA}: compare with the leakmon that made it")]
    Schema(u64),
    /// A count beyond belief.
    #[error("not a leakmon report: a count is above {COUNT_MAX}")]
    Count,
}

/// The one field that must be understood before the others.
#[derive(Deserialize)]
struct Version {
    schema: u64,
}

/// Reads a JSON report.
///
/// # Errors
/// [`ParseError`] with what is wrong.
pub fn parse(bytes: &[u8]) -> Result<Report, ParseError> {
    let version: Version = serde_json::from_slice(bytes).map_err(ParseError::Form)?;
    if version.schema != u64::from(SCHEMA) {
        return Err(ParseError::Schema(version.schema));
    }
    let report: Report = serde_json::from_slice(bytes).map_err(ParseError::Form)?;
    let of_callsites = report
        .callsites
        .iter()
        .flat_map(|callsite| [callsite.live, callsite.spawned, callsite.ended]);
    let of_stacks = report
        .callsites
        .iter()
        .flat_map(|callsite| &callsite.stacks)
        .flat_map(|stack| [stack.live, stack.spawned]);
    if of_callsites.chain(of_stacks).any(|count| count > COUNT_MAX) {
        return Err(ParseError::Count);
    }
    Ok(report)
}
