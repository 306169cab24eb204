//! Text for a person, who may be reading it at three in the morning.
//!
//! In: a report and a terminal's width. Out: the processes, the callsites as the report sorts them, the stacks of the
//! first few, and what was lost, each only where there is something to say. It sorts and judges nothing.
//!
//! Names are cut in their middle where the width is short; counts, ages, verdicts and line numbers never are. Sentences
//! wrap.

mod layout;
pub(super) mod spot;

use self::layout::{Layout, Place};
use self::spot::Spot;
use super::report::{CallsiteReport, EntityCounts, LossReport, Report, TargetReport, TargetStatus, Verdict};
use super::{RenderOptions, age, escape, shorten};
use std::borrow::Cow;
use std::fmt::Write;

/// Processes and callsites shown; JSON has all.
const TARGETS_MAX: usize = 50;
const CALLSITES_MAX: usize = 50;
/// Callsites whose stack is shown, and frames of it.
const STACKS_MAX: usize = 3;
const FRAMES_MAX: usize = 6;

/// Narrower terminals are taken to be this wide.
const WIDTH_MIN: usize = 40;
/// Columns for a process's name.
const PROCESS_MAX: usize = 32;

/// Select Graphic Rendition parameters (ECMA-48 8.3.117).
const BOLD: &str = "1";
const RED_BOLD: &str = "1;31";
const YELLOW: &str = "33";
const GREEN: &str = "32";

/// The report as text.
#[must_use]
pub fn render(report: &Report, options: &RenderOptions) -> Vec<u8> {
    let width = options
        .width
        .map_or(usize::MAX, |width| usize::from(width).max(WIDTH_MIN));
    let mut page = Page {
        text: String::new(),
        width,
        colour: options.colour,
    };
    page.targets(report);
    if report.callsites.is_empty() {
        page.nothing_spawned(report);
    } else {
        page.callsites(report);
        page.stacks(report);
    }
    page.losses(&report.loss);
    page.text.into_bytes()
}

/// The text so far, and what the terminal can show.
struct Page {
    text: String,
    width: usize,
    colour: bool,
}

impl Page {
    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    fn gap(&mut self) {
        if !self.text.is_empty() {
            self.text.push('\n');
        }
    }

    fn paint<'a>(&self, style: &str, text: &'a str) -> Cow<'a, str> {
        if self.colour {
            Cow::Owned(format!("\u{1b}[{style}m{text}\u{1b}[0m"))
        } else {
            Cow::Borrowed(text)
        }
    }

    /// A sentence, wrapped between words; a word that is wider than the page is cut.
    fn sentence(&mut self, indent: usize, text: &str) {
        let room = self.width - indent;
        let mut line = String::new();
        for word in text.split_whitespace() {
            let word = shorten::middle(word, room);
            if !line.is_empty() && shorten::columns(&line) + 1 + shorten::columns(&word) > room {
                self.line(&format!("{:indent$}{line}", ""));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
        if !line.is_empty() {
            self.line(&format!("{:indent$}{line}", ""));
        }
    }

    fn targets(&mut self, report: &Report) {
        if report.targets.is_empty() {
            self.sentence(0, "No process is being watched.");
        }
        for target in report.targets.iter().take(TARGETS_MAX) {
            self.target(target);
        }
        self.not_shown(report.targets.len().saturating_sub(TARGETS_MAX), "process", "processes");
    }

    fn target(&mut self, target: &TargetReport) {
        let process = escape::name(target.process_name());
        let process = shorten::middle(&process, self.width.min(PROCESS_MAX)).into_owned();
        let exe = escape::name(&target.exe);
        let mut about = format!(" (PID {})", target.pid);
        if let Some(runtime) = &target.runtime {
            let _ = write!(about, ", {}", escape::name(runtime));
            if let Some(version) = &target.runtime_version {
                let _ = write!(about, " {}", escape::name(version));
            }
        }
        let _ = write!(about, ", {}", target.status.as_str());
        if target.exited {
            about.push_str(", exited");
        }
        let used = shorten::columns(&process) + shorten::columns(&about);
        let on_one_line = used + 2 + shorten::columns(&exe) <= self.width;
        let about = shorten::middle(&about, self.width.saturating_sub(shorten::columns(&process)));
        let head = format!("{}{about}", self.paint(BOLD, &process));
        if on_one_line {
            self.line(&format!("{head}, {exe}"));
        } else {
            self.line(&head);
            self.line(&format!("  {}", shorten::middle(&exe, self.width - 2)));
        }
        if let Some(reason) = target.reason.as_deref().filter(|reason| !reason.is_empty()) {
            self.sentence(2, &format!("{}: {}", target.status.as_str(), escape::name(reason)));
        }
        if target.status != TargetStatus::Unsupported {
            self.counts("tasks", target.task, "spawned");
        }
        if let Some(thread) = target.thread {
            self.counts("threads", thread, "started");
        }
    }

    fn counts(&mut self, what: &str, counts: EntityCounts, born: &str) {
        let EntityCounts { spawned, ended, live } = counts;
        self.sentence(2, &format!("{what}: {live} live, {spawned} {born}, {ended} ended"));
    }

    fn not_shown(&mut self, count: usize, one: &str, many: &str) {
        if count > 0 {
            let what = if count == 1 { one } else { many };
            self.sentence(
                0,
                &format!("… and {count} more {what} that only the other formats show."),
            );
        }
    }

    fn nothing_spawned(&mut self, report: &Report) {
        let followed = |target: &TargetReport| target.status != TargetStatus::Unsupported;
        if report.targets.iter().any(followed) {
            self.gap();
            let since = age::human(report.observed_seconds);
            self.sentence(0, &format!("No task has been spawned since the attach {since} ago."));
        }
    }

    fn callsites(&mut self, report: &Report) {
        self.gap();
        let shown = &report.callsites[..report.callsites.len().min(CALLSITES_MAX)];
        let layout = Layout::new(shown, self.width);
        let mut head = String::new();
        for (column, width) in &layout.columns {
            pad(&mut head, column.heading, *width, column.right, layout.gap);
        }
        if layout.place != Place::Below {
            head.push_str("WHERE");
        }
        let head = self.paint(BOLD, head.trim_end()).into_owned();
        self.line(&head);
        for callsite in shown {
            self.callsite(callsite, &layout);
        }
        self.not_shown(report.callsites.len() - shown.len(), "callsite", "callsites");
    }

    fn callsite(&mut self, callsite: &CallsiteReport, layout: &Layout) {
        let mut row = String::new();
        for (column, width) in &layout.columns {
            let mut cell = String::new();
            pad(&mut cell, &(column.cell)(callsite), *width, column.right, layout.gap);
            let style = match callsite.verdict {
                Verdict::Leak => RED_BOLD,
                Verdict::Suspect => YELLOW,
                Verdict::Steady => GREEN,
                Verdict::Unknown => "",
            };
            let verdict = column.heading == "VERDICT" && !style.is_empty();
            row.push_str(&if verdict {
                self.paint(style, &cell)
            } else {
                Cow::Borrowed(cell.as_str())
            });
        }
        let type_name = callsite.task_type.as_deref().map(escape::name);
        let location = Spot::of_callsite(callsite);
        match layout.place {
            Place::Beside(room) => {
                row.push_str(&spot::beside(type_name.as_deref(), location.as_ref(), room));
                self.line(&row);
            }
            Place::Stacked(room) => {
                let indent = self.width - room;
                let mut lines = spot::stacked(type_name.as_deref(), location.as_ref(), room).into_iter();
                row.push_str(&lines.next().unwrap_or_default());
                self.line(&row);
                lines.for_each(|line| self.line(&format!("{:indent$}{line}", "")));
            }
            Place::Below => {
                self.line(&row);
                for line in spot::stacked(type_name.as_deref(), location.as_ref(), self.width - 2) {
                    self.line(&format!("  {line}"));
                }
            }
        }
    }

    fn stacks(&mut self, report: &Report) {
        let with_stack = report
            .callsites
            .iter()
            .filter(|callsite| callsite.live > 0 && !callsite.stacks.is_empty());
        for (index, callsite) in with_stack.take(STACKS_MAX).enumerate() {
            self.gap();
            let name = match (callsite.task_type.as_deref(), Spot::of_callsite(callsite)) {
                (Some(task_type), _) => escape::name(task_type).into_owned(),
                (None, Some(spot)) => spot.fit(usize::MAX),
                (None, None) => callsite.kind.to_owned(),
            };
            let rank = format!("{}. ", index + 1);
            let name = shorten::rust_name(&name, self.width - rank.len());
            let title = format!("{rank}{}", self.paint(BOLD, &name));
            self.line(&title);
            self.sentence(
                3,
                &format!("callsite {}, PID {}", escape::name(&callsite.id), callsite.pid),
            );
            if let Some(evidence) = callsite.evidence.as_deref() {
                self.sentence(3, &escape::name(evidence));
            }
            self.stack(callsite);
        }
    }

    /// The first stack, from the callsite's location on: what is inside of it belongs to the runtime.
    fn stack(&mut self, callsite: &CallsiteReport) {
        let Some(stack) = callsite.stacks.first() else { return };
        let start = stack
            .frames
            .iter()
            .position(|frame| spot::is_location(frame, callsite))
            .unwrap_or(0);
        let stacks = callsite.stacks.iter().filter(|stack| stack.live > 0).count();
        let largest = if stacks > 1 {
            format!(", the largest of {stacks} stacks")
        } else {
            String::new()
        };
        self.sentence(
            3,
            &format!(
                "{} of {} live{largest}, innermost frame first:",
                stack.live, callsite.live
            ),
        );
        for frame in stack.frames.iter().skip(start).take(FRAMES_MAX) {
            let fitted = Spot::of_frame(frame).fit(self.width - 5);
            self.line(&format!("     {fitted}"));
        }
        let rest = stack.frames.len().saturating_sub(start + FRAMES_MAX);
        if rest > 0 {
            let (frames, end) = (
                if rest == 1 { "frame" } else { "frames" },
                if stack.complete { "" } else { " and an unknown rest" },
            );
            self.sentence(5, &format!("… {rest} more {frames}{end}"));
        } else if !stack.complete {
            self.sentence(5, "… the rest is not known");
        }
    }

    fn losses(&mut self, loss: &LossReport) {
        let lost = sentences(loss).into_iter().filter(|(count, ..)| *count > 0);
        for (index, (count, one, many, what)) in lost.enumerate() {
            if index == 0 {
                self.gap();
            }
            self.sentence(0, &format!("{count} {} {what}", if count == 1 { one } else { many }));
        }
    }
}

/// How many, one of them, several, and what became of them.
type Sentence = (u64, &'static str, &'static str, &'static str);

fn sentences(loss: &LossReport) -> [Sentence; 10] {
    [
        (
            loss.unmatched_ends,
            "end belongs to a task",
            "ends belong to tasks",
            "older than the attach.",
        ),
        (
            loss.replaced,
            "task was",
            "tasks were",
            "freed without completing and counted as ended.",
        ),
        (
            loss.live_full + loss.counts_full,
            "task is",
            "tasks are",
            "not followed, since a table was full.",
        ),
        (
            loss.paused,
            "task is",
            "tasks are",
            "not followed, since a process was paused for its many hits.",
        ),
        (
            loss.targets_full,
            "hit was",
            "hits were",
            "left out, since there are too many processes.",
        ),
        (
            loss.images_full,
            "executable is",
            "executables are",
            "not probed: there are too many, or no probe could be attached.",
        ),
        (
            loss.processes_unjudged,
            "process is",
            "processes are",
            "not shown: gone before the rules could be asked.",
        ),
        (
            loss.stacks_full,
            "task is",
            "tasks are",
            "counted without a stack, since the stack table was full.",
        ),
        (
            loss.stacks_truncated,
            "stack ends",
            "stacks end",
            "before the thread's start.",
        ),
        (
            loss.events_dropped,
            "event was",
            "events were",
            "dropped; counts stay right but may come late.",
        ),
    ]
}

/// Appends a cell, padded to its width, and the gap behind it.
fn pad(row: &mut String, cell: &str, width: usize, right: bool, gap: usize) {
    let fill = width.saturating_sub(shorten::columns(cell));
    let (before, after) = if right { (fill, gap) } else { (0, fill + gap) };
    let _ = write!(row, "{:before$}{cell}{:after$}", "", "");
}

#[cfg(test)]
mod tests;
