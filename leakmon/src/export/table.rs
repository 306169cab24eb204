//! Text for a person, who may be reading it at three in the morning.
//!
//! In: a report and a terminal's width. Out: the processes, the callsites as the report sorts them, the stacks of the first
//! few, and what was lost, each only where there is something to say. It sorts and judges nothing.
//!
//! Names are cut in their middle where the width is short; counts, ages, verdicts and line numbers never are. Sentences wrap.

use super::report::{CallsiteReport, EntityCounts, Frame, LossReport, Report, TargetReport, TargetStatus, Verdict};
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
/// Columns that the last column needs to be of use beside the others; below that it gets lines of its own.
const WHERE_MIN: usize = 32;
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

/// One column of the table before the last, by its heading.
struct Column {
    heading: &'static str,
    right: bool,
    cell: fn(&CallsiteReport) -> String,
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
struct Layout {
    columns: Vec<(&'static Column, usize)>,
    gap: usize,
    place: Place,
}

/// Where a callsite's type and location are shown.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Behind the other columns, on one line.
    Beside(usize),
    /// Behind the other columns, type and location below each other.
    Stacked(usize),
    /// On lines of their own.
    Below,
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
                row.push_str(&beside(type_name.as_deref(), location.as_ref(), room));
                self.line(&row);
            }
            Place::Stacked(room) => {
                let indent = self.width - room;
                let mut lines = stacked(type_name.as_deref(), location.as_ref(), room).into_iter();
                row.push_str(&lines.next().unwrap_or_default());
                self.line(&row);
                lines.for_each(|line| self.line(&format!("{:indent$}{line}", "")));
            }
            Place::Below => {
                self.line(&row);
                for line in stacked(type_name.as_deref(), location.as_ref(), self.width - 2) {
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
            self.sentence(3, &format!("callsite {}", escape::name(&callsite.id)));
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
            .position(|frame| is_location(frame, callsite))
            .unwrap_or(0);
        self.sentence(
            3,
            &format!("{} of {} live, innermost frame first:", stack.live, callsite.live),
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
        let known = [
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
                loss.live_full,
                "task is",
                "tasks are",
                "not followed, since a table was full.",
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
        ];
        let lost = known.iter().filter(|(count, ..)| *count > 0);
        for (index, (count, one, many, what)) in lost.enumerate() {
            if index == 0 {
                self.gap();
            }
            self.sentence(0, &format!("{count} {} {what}", if *count == 1 { one } else { many }));
        }
    }
}

impl Layout {
    fn new(callsites: &[CallsiteReport], width: usize) -> Self {
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
        let used: usize = columns.iter().map(|(_, column)| column + 2).sum();
        let room = width.saturating_sub(used);
        let fits = |callsite: &CallsiteReport| {
            let type_name = callsite.task_type.as_deref().map(escape::name);
            let whole = beside(type_name.as_deref(), Spot::of_callsite(callsite).as_ref(), usize::MAX);
            shorten::columns(&whole) <= room
        };
        if callsites.iter().all(fits) {
            return Self {
                columns,
                gap: 2,
                place: Place::Beside(room),
            };
        }
        if room >= WHERE_MIN {
            return Self {
                columns,
                gap: 2,
                place: Place::Stacked(room),
            };
        }
        for dispensable in ["ENDED", "KIND"] {
            if columns.iter().map(|(_, column)| column + 1).sum::<usize>() > width + 1 {
                columns.retain(|(column, _)| column.heading != dispensable);
            }
        }
        Self {
            columns,
            gap: 1,
            place: Place::Below,
        }
    }
}

/// Appends a cell, padded to its width, and the gap behind it.
fn pad(row: &mut String, cell: &str, width: usize, right: bool, gap: usize) {
    let fill = width.saturating_sub(shorten::columns(cell));
    let (before, after) = if right { (fill, gap) } else { (0, fill + gap) };
    let _ = write!(row, "{:before$}{cell}{:after$}", "", "");
}

/// Type and location on one line of at most `room` columns.
fn beside(type_name: Option<&str>, location: Option<&Spot<'_>>, room: usize) -> String {
    match (type_name, location) {
        (Some(type_name), Some(spot)) => format!("{type_name} spawned in {}", spot.fit(usize::MAX)),
        (Some(type_name), None) => shorten::rust_name(type_name, room).into_owned(),
        (None, Some(spot)) => spot.fit(room),
        (None, None) => "unknown".to_owned(),
    }
}

/// Type and location on a line each, of at most `room` columns.
fn stacked(type_name: Option<&str>, location: Option<&Spot<'_>>, room: usize) -> Vec<String> {
    const BEFORE: &str = "in ";
    match (type_name, location) {
        (Some(type_name), Some(spot)) => vec![
            shorten::rust_name(type_name, room).into_owned(),
            format!("{BEFORE}{}", spot.fit(room - BEFORE.len())),
        ],
        _ => vec![beside(type_name, location, room)],
    }
}

/// A place in code, as far as it is known, escaped.
struct Spot<'a> {
    /// Function; else image and offset.
    name: Cow<'a, str>,
    /// `file:line`.
    line: Option<String>,
}

impl<'a> Spot<'a> {
    fn of_callsite(callsite: &'a CallsiteReport) -> Option<Self> {
        let location = &callsite.location;
        let name = match (&location.function, &location.image, location.offset) {
            (Some(function), _, _) => escape::name(function),
            (None, Some(image), Some(offset)) => Cow::Owned(format!("{}+{offset:#x}", escape::name(image))),
            _ => return None,
        };
        Some(Self {
            name,
            line: file_line(location.file.as_deref(), location.line),
        })
    }

    fn of_frame(frame: &'a Frame) -> Self {
        let name = match (&frame.function, &frame.image) {
            (Some(function), _) => escape::name(function),
            (None, Some(image)) => Cow::Owned(format!("{}+{:#x}", escape::name(image), frame.offset)),
            (None, None) => Cow::Owned(format!("{:#x}", frame.offset)),
        };
        Self {
            name,
            line: file_line(frame.file.as_deref(), frame.line),
        }
    }

    /// `name at file:line` in at most `room` columns; the end of the file's name and the line stay.
    fn fit(&self, room: usize) -> String {
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
fn is_location(frame: &Frame, callsite: &CallsiteReport) -> bool {
    let location = &callsite.location;
    if location.function.is_some() {
        frame.function == location.function && frame.file == location.file && frame.line == location.line
    } else {
        frame.image == location.image && Some(frame.offset) == location.offset
    }
}

#[cfg(test)]
mod tests;
