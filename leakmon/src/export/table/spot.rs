//! A task's type and a place in code, as far as they are known, in a number of columns.
//!
//! In: callsites and frames. Out: lines that no terminal obeys and that fit. Line numbers are never cut.

use crate::export::report::{CallsiteReport, Frame, Location};
use crate::export::{escape, shorten};
use std::borrow::Cow;

/// Type and location on one line of at most `room` columns.
pub(in crate::export) fn beside(type_name: Option<&str>, location: Option<&Spot<'_>>, room: usize) -> String {
    match (type_name, location) {
        (Some(type_name), Some(spot)) => format!("{type_name} spawned in {}", spot.fit(usize::MAX)),
        (Some(type_name), None) => shorten::rust_name(type_name, room).into_owned(),
        (None, Some(spot)) => spot.fit(room),
        (None, None) => "unknown".to_owned(),
    }
}

/// Type and location on a line each, of at most `room` columns.
pub(in crate::export) fn stacked(type_name: Option<&str>, location: Option<&Spot<'_>>, room: usize) -> Vec<String> {
    const BEFORE: &str = "in ";
    match (type_name, location) {
        (Some(type_name), Some(spot)) => vec![
            shorten::rust_name(type_name, room).into_owned(),
            format!("{BEFORE}{}", spot.fit(room.saturating_sub(BEFORE.len()))),
        ],
        _ => vec![beside(type_name, location, room)],
    }
}

/// A place in code, as far as it is known, escaped.
pub(in crate::export) struct Spot<'a> {
    /// Function; else image and offset.
    name: Cow<'a, str>,
    /// `file:line`.
    line: Option<String>,
}

impl<'a> Spot<'a> {
    pub(in crate::export) fn of_callsite(callsite: &'a CallsiteReport) -> Option<Self> {
        let Location {
            function,
            file,
            line,
            image,
            offset,
        } = &callsite.location;
        let name = escape::code_place(function.as_deref(), image.as_deref(), *offset)?;
        Some(Self {
            name,
            line: file_line(file.as_deref(), *line),
        })
    }

    pub(in crate::export) fn of_frame(frame: &'a Frame) -> Self {
        // A frame has an offset, so it is always called something.
        let name = escape::code_place(frame.function.as_deref(), frame.image.as_deref(), Some(frame.offset));
        Self {
            name: name.unwrap_or_default(),
            line: file_line(frame.file.as_deref(), frame.line),
        }
    }

    /// `name at file:line` in at most `room` columns; the end of the file's name and the line stay.
    pub(in crate::export) fn fit(&self, room: usize) -> String {
        const AT: &str = " at ";
        let Some(line) = &self.line else {
            return shorten::rust_name(&self.name, room).into_owned();
        };
        let name_columns = shorten::columns(&self.name);
        let both = room.saturating_sub(AT.len());
        let for_line = both.saturating_sub(name_columns).max(both / 2);
        let line = shorten::middle(line, for_line);
        let name = shorten::rust_name(&self.name, both - shorten::columns(&line));
        format!("{name}{AT}{line}")
    }
}

fn file_line(file: Option<&str>, line: Option<u32>) -> Option<String> {
    let file = escape::name(file?);
    Some(line.map_or_else(|| file.to_string(), |line| format!("{file}:{line}")))
}

/// Whether the frame is the one that gave the callsite its location.
pub(in crate::export) fn is_location(frame: &Frame, callsite: &CallsiteReport) -> bool {
    let location = &callsite.location;
    if location.function.is_some() {
        frame.function == location.function && frame.file == location.file && frame.line == location.line
    } else {
        frame.image == location.image && Some(frame.offset) == location.offset
    }
}
