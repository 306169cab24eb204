//! Folded stacks, one line a stack, as `flamegraph.pl`, inferno and speedscope read them.
//!
//! In: a report. Out: lines `process;outermost;…;innermost;[kind type] LIVE`, sorted, identical ones merged. Processes
//! of one executable are merged too, so that two reports of a service can be compared; `?pid=` keeps them apart. The
//! sum of the weights is the number of live tasks. Frames are all of the stack's, runtime and inlined ones included.
//!
//! Source of the format: `stackcollapse.pl` of Brendan Gregg's `FlameGraph`: frames separated by `;`, outermost first,
//! then a space and the count.

use super::report::{CallsiteReport, Frame, Location, Report};
use super::{RenderOptions, escape};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

/// Stands above the outermost frame that a walk reached, where the walk ended before the thread's start.
const TRUNCATED: &str = "[truncated]";

/// The report as folded stacks. Stacks without a live task are left out.
#[must_use]
pub fn render(report: &Report, _options: &RenderOptions) -> Vec<u8> {
    let processes: HashMap<&str, &str> = report
        .targets
        .iter()
        .map(|target| (target.id.as_str(), target.process_name()))
        .collect();
    let mut lines: BTreeMap<String, u64> = BTreeMap::new();
    for callsite in &report.callsites {
        let process = folded_name(processes.get(callsite.target.as_str()).copied().unwrap_or("[unknown]"));
        let leaf = leaf(callsite);
        let mut add = |middle: &str, live: u64| {
            if live > 0 {
                let weight = lines.entry(format!("{process};{middle}{leaf}")).or_default();
                *weight = weight.saturating_add(live);
            }
        };
        let mut left = callsite.live;
        for stack in &callsite.stacks {
            left = left.saturating_sub(stack.live);
            add(&folded_frames(&stack.frames, stack.complete), stack.live);
        }
        // Live tasks of which no stack is shown (`--no-stacks`, or a stack counted later than the callsite).
        add(&folded_location(&callsite.location), left);
    }
    let mut text = String::new();
    for (line, live) in lines {
        // Writing to a String can't fail.
        let _ = writeln!(text, "{line} {live}");
    }
    text.into_bytes()
}

/// The last element. It ends in a bracket, so that a type's name ending in a number is not taken for the count.
fn leaf(callsite: &CallsiteReport) -> String {
    match &callsite.task_type {
        Some(task_type) => format!("[{} {}]", callsite.kind, folded_name(task_type)),
        None => format!("[{}]", callsite.kind),
    }
}

fn folded_frames(frames: &[Frame], complete: bool) -> String {
    let mut middle = String::new();
    if !complete {
        middle.push_str(TRUNCATED);
        middle.push(';');
    }
    for frame in frames.iter().rev() {
        middle.push_str(&frame_name(frame));
        middle.push(';');
    }
    middle
}

fn frame_name(frame: &Frame) -> Cow<'_, str> {
    // A frame has an offset, so it is always called something.
    let place = escape::code_place(frame.function.as_deref(), frame.image.as_deref(), Some(frame.offset));
    escape::folded_frame(place.unwrap_or_default())
}

fn folded_location(location: &Location) -> String {
    let place = escape::code_place(location.function.as_deref(), location.image.as_deref(), location.offset);
    place
        .map(|place| format!("{};", escape::folded_frame(place)))
        .unwrap_or_default()
}

fn folded_name(name: &str) -> Cow<'_, str> {
    escape::folded_frame(escape::name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;

    fn text(report: &Report) -> String {
        String::from_utf8(render(report, &RenderOptions::default())).unwrap()
    }

    #[test]
    fn the_report_in_folded_stacks() {
        insta::assert_snapshot!("busy_folded", text(&samples::busy()));
    }

    #[test]
    fn hostile_names_make_no_frames_and_no_lines() {
        let report = samples::hostile();
        let text = text(&report);
        insta::assert_snapshot!("hostile_folded", text);
        assert!(
            !text
                .chars()
                .any(|character| character != '\n' && escape::is_hostile(character))
        );
        for line in text.lines() {
            // Process, each frame, the type.
            assert_eq!(line.split(';').count(), 2 + report.callsites[0].stacks[0].frames.len());
        }
    }

    #[test]
    fn an_empty_report_is_no_line() {
        assert_eq!(text(&samples::empty()), "");
    }

    #[test]
    fn weights_sum_to_the_live_count_and_identical_lines_are_one() {
        let mut report = samples::busy();
        let twin = report.callsites[0].stacks[0].clone();
        report.callsites[0].live += twin.live;
        report.callsites[0].stacks.push(twin);
        report.callsites[1].stacks.clear();
        let text = text(&report);
        let sum: u64 = text
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(sum, report.callsites.iter().map(|callsite| callsite.live).sum::<u64>());
        let stacks: Vec<&str> = text.lines().map(|line| line.rsplit_once(' ').unwrap().0).collect();
        assert!(stacks.is_sorted_by(|a, b| a < b), "sorted, no line twice: {text}");
    }
}
