//! The JSON report, `"schema": 1`.
//!
//! In: a report. Out: one pretty-printed JSON object, whose keys are the field names in `report`. A number that is not
//! finite is `null`. Strings are whole up to [`STRING_CHARS_MAX`]; characters that a terminal would obey are written
//! as `\u` escapes, which JSON readers turn back, so that a report is safe to look at and loses nothing.

use super::report::Report;
use super::{RenderOptions, escape};
use serde::Serialize;
use serde_json::ser::{CharEscape, Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

/// Longest string, in characters; the rest is cut off and `…` says so. Far above any name that a person wrote, far
/// below what a hostile symbol table holds.
pub const STRING_CHARS_MAX: usize = 4_096;

/// The report as JSON text.
#[must_use]
pub fn render(report: &Report, _options: &RenderOptions) -> Vec<u8> {
    bounded(report)
}

/// A value as JSON text with bounded strings and visible control characters.
pub(super) fn bounded(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::with_capacity(4_096);
    let formatter = BoundedFormatter {
        pretty: PrettyFormatter::new(),
        left: 0,
    };
    let mut serializer = Serializer::with_formatter(&mut text, formatter);
    match value.serialize(&mut serializer) {
        Ok(()) => text.push(b'\n'),
        // A Vec takes every write and no map here has odd keys; were it to fail, half an object would be
        // worse than none.
        Err(_) => text.clear(),
    }
    text
}

/// [`PrettyFormatter`] with bounded strings and visible control characters.
struct BoundedFormatter<'a> {
    pretty: PrettyFormatter<'a>,
    /// Characters that the current string may still have.
    left: usize,
}

impl BoundedFormatter<'_> {
    /// Takes one character from the budget; writes `…` in place of the first that exceeds it.
    fn take<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<bool> {
        match self.left {
            0 => return Ok(false),
            1 => write!(writer, "{}", escape::ELLIPSIS)?,
            _ => {}
        }
        self.left -= 1;
        Ok(self.left > 0)
    }
}

impl Formatter for BoundedFormatter<'_> {
    fn begin_string<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.left = STRING_CHARS_MAX + 1;
        writer.write_all(b"\"")
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut buffer = [0; 4];
        for character in fragment.chars() {
            if !self.take(writer)? {
                return Ok(());
            }
            if escape::is_hostile(character) {
                let mut units = [0; 2];
                for unit in character.encode_utf16(&mut units) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            } else {
                writer.write_all(character.encode_utf8(&mut buffer).as_bytes())?;
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(&mut self, writer: &mut W, escaped: CharEscape) -> io::Result<()> {
        if self.take(writer)? {
            self.pretty.write_char_escape(writer, escaped)
        } else {
            Ok(())
        }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_array(writer)
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object(writer)
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.pretty.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.pretty.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn parsed(report: &Report) -> Value {
        serde_json::from_slice(&render(report, &RenderOptions::default())).unwrap()
    }

    /// Paths of all keys: `targets[].pid`.
    fn keys(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                for (key, inner) in fields {
                    let path = if path.is_empty() {
                        key.clone()
                    } else {
                        format!("{path}.{key}")
                    };
                    keys(inner, &path, found);
                    found.insert(path);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| keys(item, &format!("{path}[]"), found)),
            _ => {}
        }
    }

    #[test]
    fn the_keys_are_those_of_the_contract() {
        let contract = "schema observed_seconds targets callsites loss
            targets[].id targets[].pid targets[].exe targets[].build_id targets[].runtime targets[].runtime_version
            targets[].status targets[].reason targets[].sites targets[].task targets[].thread
            targets[].sites.spawn targets[].sites.end targets[].sites.slow
            targets[].task.spawned targets[].task.ended targets[].task.live
            targets[].thread.spawned targets[].thread.ended targets[].thread.live
            callsites[].id callsites[].target callsites[].pid callsites[].kind callsites[].live callsites[].spawned
            callsites[].ended callsites[].oldest_seconds callsites[].growth_per_minute callsites[].verdict
            callsites[].evidence callsites[].states callsites[].task_type callsites[].location callsites[].stacks
            callsites[].states.sampled callsites[].states.idle callsites[].states.scheduled callsites[].states.running
            callsites[].states.unwakeable
            callsites[].location.function callsites[].location.file callsites[].location.line
            callsites[].stacks[].live callsites[].stacks[].frames
            callsites[].stacks[].frames[].function callsites[].stacks[].frames[].file callsites[].stacks[].frames[].line
            callsites[].stacks[].frames[].image callsites[].stacks[].frames[].offset
            callsites[].stacks[].frames[].inlined
            loss.events_dropped loss.live_full loss.stacks_full
            loss.stacks_truncated loss.unmatched_ends loss.replaced";
        let added = "targets[].exited targets[].container targets[].pod_uid targets[].kubernetes targets[].kubernetes.namespace
            targets[].kubernetes.pod targets[].kubernetes.container targets[].census callsites[].born_before_attach callsites[].bytes
            callsites[].location.image callsites[].location.offset
            callsites[].stacks[].spawned callsites[].stacks[].complete callsites[].stacks[].oldest_seconds
            loss.counts_full loss.targets_full loss.images_full loss.processes_unjudged loss.paused loss.untracked_ends";
        let mut found = BTreeSet::new();
        keys(&parsed(&samples::busy()), "", &mut found);
        let want: BTreeSet<String> = contract
            .split_whitespace()
            .chain(added.split_whitespace())
            .map(str::to_owned)
            .collect();
        assert_eq!(found, want);
    }

    #[test]
    fn the_report_in_json() {
        let text = String::from_utf8(render(&samples::busy(), &RenderOptions::default())).unwrap();
        insta::assert_snapshot!("busy_json", text);
    }

    #[test]
    fn an_empty_report_in_json() {
        let text = String::from_utf8(render(&samples::empty(), &RenderOptions::default())).unwrap();
        insta::assert_snapshot!("empty_json", text);
    }

    #[test]
    fn hostile_names_come_back_whole_and_no_terminal_obeys_them() {
        let report = samples::hostile();
        let text = String::from_utf8(render(&report, &RenderOptions::default())).unwrap();
        assert!(
            !text
                .chars()
                .any(|character| character != '\n' && escape::is_hostile(character))
        );
        let value = parsed(&report);
        assert_eq!(
            value["targets"][0]["exe"].as_str(),
            Some(report.targets[0].exe.as_str())
        );
        assert_eq!(
            value["callsites"][0]["task_type"].as_str(),
            report.callsites[0].task_type.as_deref()
        );
    }

    #[test]
    fn a_string_at_the_bound_is_whole_and_one_above_is_cut() {
        let mut report = samples::busy();
        for (extra, want_cut) in [(0, false), (1, true), (100_000, true)] {
            // Every second character is escaped, so both ways of writing are counted.
            let exe: String = "é\"".chars().cycle().take(STRING_CHARS_MAX + extra).collect();
            report.targets[0].exe.clone_from(&exe);
            let value = parsed(&report);
            let got = value["targets"][0]["exe"].as_str().unwrap();
            if want_cut {
                let kept: String = exe.chars().take(STRING_CHARS_MAX).collect();
                assert_eq!(got, format!("{kept}…"));
            } else {
                assert_eq!(got, exe);
            }
        }
    }

    #[test]
    fn only_the_ten_largest_stacks_are_shown() {
        let mut report = samples::busy();
        let stack = report.callsites[0].stacks[0].clone();
        report.callsites[0].stacks = vec![stack; 25];
        assert_eq!(parsed(&report)["callsites"][0]["stacks"].as_array().unwrap().len(), 10);
    }

    #[test]
    fn what_is_no_number_is_null() {
        let mut report = samples::busy();
        report.callsites[0].oldest_seconds = Some(f64::NAN);
        report.callsites[0].growth_per_minute = Some(f64::INFINITY);
        let value = parsed(&report);
        assert!(value["callsites"][0]["oldest_seconds"].is_null());
        assert!(value["callsites"][0]["growth_per_minute"].is_null());
    }
}
