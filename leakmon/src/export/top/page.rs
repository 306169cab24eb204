//! The view on a screen.
//!
//! In: a [`View`] and a frame of any size. Out: cells. On a small screen what matters least goes first: the processes beyond the
//! first, columns from the right, the stack. Names are escaped and cut in their middle; counts never are.

use super::{Order, View, id};
use crate::export::{
    age, escape,
    report::{CallsiteReport, Report, TargetReport, Verdict},
    shorten,
    table::spot::{self, Spot},
};
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::Paragraph,
};

/// Processes that have a line of their own, where the screen is high enough.
const PROCESSES_MAX: usize = 4;

/// Rows of callsites that stay before the stack gets any.
const CALLSITES_MIN: u16 = 4;

/// Columns of a sparkline, where there is room.
const SPARKLINE: usize = 16;

/// Screens that are narrower show no sparkline, and no growth.
const SPARKLINE_FROM: u16 = 100;
const GROWTH_FROM: u16 = 50;

/// Draws the view.
pub fn draw(frame: &mut Frame<'_>, view: &View) {
    let area = frame.area();
    let processes = view.report.as_ref().map_or(0, |report| report.targets.len());
    // A quarter of the screen at most.
    let processes = processes.min(PROCESSES_MAX).min(usize::from(area.height / 4)) as u16;
    let rest = area.height.saturating_sub(3 + processes);
    // Half of it, and what the list leaves.
    let spare = rest.saturating_sub(view.shown.len().try_into().unwrap_or(u16::MAX));
    let details = (rest / 2).max(spare).min(rest.saturating_sub(CALLSITES_MIN));
    let [title, targets, header, rows, detail, help] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(processes),
        Constraint::Length(1),
        Constraint::Min(0),
        Constraint::Length(details),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(title_line(view, title.width), title);
    if let Some(report) = &view.report {
        draw_targets(frame, report, targets);
    }
    draw_callsites(frame, view, header, rows);
    draw_detail(frame, view, detail);
    frame.render_widget(help_line(view, help.width), help);
}

/// What a callsite is called.
pub(super) fn name(callsite: &CallsiteReport) -> String {
    let type_name = callsite.task_type.as_deref().map(escape::name);
    let spot = Spot::of_callsite(callsite);
    if type_name.is_none() && spot.is_none() {
        return format!("[{}]", callsite.kind);
    }
    spot::beside(type_name.as_deref(), spot.as_ref(), usize::MAX)
}

/// The same on one line, or on two where it is wider: where a task is spawned is what one looks for.
fn title(callsite: &CallsiteReport, width: usize) -> Vec<String> {
    let whole = name(callsite);
    if shorten::columns(&whole) <= width {
        return vec![whole];
    }
    let type_name = callsite.task_type.as_deref().map(escape::name);
    spot::stacked(type_name.as_deref(), Spot::of_callsite(callsite).as_ref(), width)
}

/// What a callsite is called, in a row of a list: whole, or the task type alone, or the end of its path.
fn row_name(callsite: &CallsiteReport, room: usize) -> String {
    let whole = name(callsite);
    if shorten::columns(&whole) <= room {
        return whole;
    }
    let known = callsite.task_type.as_deref().or(callsite.location.function.as_deref());
    let Some(known) = known.map(escape::name) else {
        return shorten::middle(&whole, room).into_owned();
    };
    let mut path = known.as_ref();
    while let Some(shorter) = path.strip_suffix("::{{closure}}") {
        path = shorter;
    }
    // The crate is in the details; the function is what tells callsites apart.
    if !path.contains('<') {
        while shorten::columns(path) > room
            && let Some((_, inner)) = path.split_once("::")
        {
            path = inner;
        }
    }
    shorten::rust_name(path, room).into_owned()
}

fn title_line(view: &View, width: u16) -> Line<'static> {
    let mut spans = vec!["leakmon top".bold()];
    let mut text = String::new();
    if let Some(report) = &view.report {
        let live: u64 = report.targets.iter().map(|target| target.task.live).sum();
        let of = |verdict| report.callsites.iter().filter(|site| site.verdict == verdict).count();
        text = format!("  {live} live  {}", age::human(report.observed_seconds));
        let (leaks, suspects) = (of(Verdict::Leak), of(Verdict::Suspect));
        for (count, verdict, word) in [(leaks, Verdict::Leak, "leak"), (suspects, Verdict::Suspect, "suspect")] {
            if count > 0 {
                let plural = if count == 1 { "" } else { "s" };
                spans.push(Span::styled(format!("  {count} {word}{plural}"), colour(verdict)));
            }
        }
    }
    spans.insert(1, text.into());
    if view.is_paused {
        spans.push("  PAUSED".bold());
    }
    if let Some(trouble) = &view.trouble {
        let used: usize = spans.iter().map(|span| shorten::columns(&span.content)).sum();
        let room = usize::from(width).saturating_sub(used + 2);
        let trouble = escape::name(trouble);
        spans.push(Span::styled(
            format!("  {}", shorten::middle(&trouble, room)),
            Style::new().fg(Color::Yellow),
        ));
    }
    Line::from(spans)
}

fn draw_targets(frame: &mut Frame<'_>, report: &Report, area: Rect) {
    let rows = usize::from(area.height);
    // The last line tells of those that have none.
    let whole = if report.targets.len() > rows {
        rows.saturating_sub(1)
    } else {
        rows
    };
    let mut lines: Vec<Line<'_>> = report
        .targets
        .iter()
        .take(whole)
        .map(|target| Line::from(target_text(target, usize::from(area.width))))
        .collect();
    if report.targets.len() > whole {
        lines.push(Line::from(format!(
            "… and {} more processes",
            report.targets.len() - whole
        )));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn target_text(target: &TargetReport, width: usize) -> String {
    let exited = if target.exited { ", exited" } else { "" };
    let counts = format!(
        " ({}) {}{exited}: {} live, {} spawned, {} ended",
        target.pid,
        target.status.as_str(),
        target.task.live,
        target.task.spawned,
        target.task.ended
    );
    let process = escape::name(target.process_name());
    let room = width.saturating_sub(shorten::columns(&counts));
    shorten::middle(&format!("{}{counts}", shorten::middle(&process, room)), width).into_owned()
}

/// A column by its heading, width and cell.
struct Column {
    heading: &'static str,
    width: usize,
    right: bool,
    cell: fn(&CallsiteReport) -> String,
}

const COLUMNS: [Column; 4] = [
    Column {
        heading: "VERDICT",
        width: 7,
        right: false,
        cell: |callsite| callsite.verdict.as_str().to_owned(),
    },
    Column {
        heading: "LIVE",
        width: 7,
        right: true,
        cell: |callsite| callsite.live.to_string(),
    },
    Column {
        heading: "GROW/MIN",
        width: 8,
        right: true,
        cell: |callsite| {
            callsite
                .growth_per_minute
                .map_or_else(|| "-".to_owned(), |growth| format!("{growth:+.1}"))
        },
    },
    Column {
        heading: "OLDEST",
        width: 7,
        right: true,
        cell: |callsite| callsite.oldest_seconds.map_or_else(|| "-".to_owned(), age::human),
    },
];

fn columns(width: u16) -> impl Iterator<Item = &'static Column> {
    COLUMNS
        .iter()
        .filter(move |column| column.heading != "GROW/MIN" || width >= GROWTH_FROM)
}

/// Appends a cell; a count that is wider than its column is not cut.
fn cell(row: &mut String, text: &str, column: &Column) {
    let fill = column.width.saturating_sub(shorten::columns(text));
    let (before, after) = if column.right { (fill, 1) } else { (0, fill + 1) };
    row.push_str(&" ".repeat(before));
    row.push_str(text);
    row.push_str(&" ".repeat(after));
}

fn draw_callsites(frame: &mut Frame<'_>, view: &View, header: Rect, area: Rect) {
    let has_sparkline = area.width >= SPARKLINE_FROM;
    let mut heading = String::new();
    columns(header.width).for_each(|column| cell(&mut heading, column.heading, column));
    if has_sparkline {
        heading.push_str(&format!("{:SPARKLINE$} ", "TREND"));
    }
    heading.push_str("WHERE");
    frame.render_widget(Paragraph::new(heading.bold()), header);
    if view.shown.is_empty() {
        let text = nothing(view);
        frame.render_widget(Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true }), area);
        return;
    }
    let height = usize::from(area.height);
    let selected = view.row();
    // The selected row is always on the screen.
    let first = (selected + 1).saturating_sub(height);
    let rows = (first..view.shown.len()).take(height);
    let lines: Vec<Line<'_>> = rows
        .filter_map(|row| Some(callsite_line(view, view.callsite(row)?, row == selected, area.width)))
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn callsite_line(view: &View, callsite: &CallsiteReport, selected: bool, width: u16) -> Line<'static> {
    let mut spans = Vec::new();
    for column in columns(width) {
        let mut text = String::new();
        cell(&mut text, &(column.cell)(callsite), column);
        let style = if column.heading == "VERDICT" {
            colour(callsite.verdict)
        } else {
            Style::new()
        };
        spans.push(Span::styled(text, style));
    }
    if width >= SPARKLINE_FROM {
        let line = view.trails.line(&id(callsite), SPARKLINE);
        spans.push(Span::raw(format!("{line:SPARKLINE$} ")));
    }
    let used: usize = spans.iter().map(|span| shorten::columns(&span.content)).sum();
    let room = usize::from(width).saturating_sub(used);
    let fitted = row_name(callsite, room);
    let fill = room.saturating_sub(shorten::columns(&fitted));
    spans.push(Span::raw(format!("{fitted}{}", " ".repeat(fill))));
    let line = Line::from(spans);
    if selected {
        line.style(Style::new().add_modifier(Modifier::REVERSED))
    } else {
        line
    }
}

fn nothing(view: &View) -> String {
    match &view.report {
        None => "Waiting for the first report …".to_owned(),
        Some(report) if report.targets.is_empty() => "No process is being watched.".to_owned(),
        Some(report) if report.callsites.is_empty() => {
            "No task has been spawned since leakmon watches. Only tasks that are born from now on are counted."
                .to_owned()
        }
        Some(_) => format!(
            "Nothing matches \"{}\". Esc clears the filter.",
            escape::name(&view.filter)
        ),
    }
}

/// The selected callsite: why it is called what it is called, and its largest stack.
fn draw_detail(frame: &mut Frame<'_>, view: &View, area: Rect) {
    let Some(callsite) = view.callsite(view.row()) else {
        return;
    };
    let width = usize::from(area.width);
    let title = title(callsite, width).into_iter();
    let mut lines: Vec<Line<'_>> = title.map(|line| Line::from(line.bold())).collect();
    if let Some(evidence) = callsite.evidence.as_deref() {
        let evidence = escape::name(evidence).into_owned();
        lines.extend(
            wrapped(&evidence, width)
                .into_iter()
                .map(|line| Line::styled(line, colour(callsite.verdict))),
        );
    }
    if let Some(stack) = callsite.stacks.first() {
        let start = stack
            .frames
            .iter()
            .position(|frame| spot::is_location(frame, callsite))
            .unwrap_or(0);
        let others = callsite.stacks.len() - 1;
        let others = if others > 0 {
            format!(", {others} more stacks")
        } else {
            String::new()
        };
        let frames = stack.frames.len() - start;
        let scrolled = view.scrolled.min(frames.saturating_sub(1));
        lines.push(Line::from(format!(
            "{} live with this stack{others}; PgDn scrolls:",
            stack.live
        )));
        let shown = stack.frames.iter().skip(start + scrolled);
        lines
            .extend(shown.map(|frame| Line::from(format!("  {}", Spot::of_frame(frame).fit(width.saturating_sub(2))))));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// A sentence in lines of so many columns; a word that is wider is cut.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word = shorten::middle(word, width);
        let Some(last) = lines.last_mut() else { break };
        if last.is_empty() {
            last.push_str(&word);
        } else if shorten::columns(last) + 1 + shorten::columns(&word) <= width {
            last.push(' ');
            last.push_str(&word);
        } else {
            lines.push(word.into_owned());
        }
    }
    lines
}

fn help_line(view: &View, width: u16) -> Line<'static> {
    if view.is_typing {
        let filter = escape::name(&view.filter).into_owned();
        return Line::from(format!("filter: {filter}▏ Enter keeps it, Esc clears it"));
    }
    let sorted = view.order.word();
    let filter = if view.filter.is_empty() {
        "/ filter".to_owned()
    } else {
        format!("filter \"{}\" Esc", escape::name(&view.filter))
    };
    let long = format!("q quit  ↑↓ select  PgUp PgDn stack  {filter}  p pause  sorted by {sorted}: s next, ");
    let keys: Vec<String> = Order::ALL
        .iter()
        .map(|order| format!("{} {}", order.key(), order.word()))
        .collect();
    let long = format!("{long}{}", keys.join(" "));
    let short = format!("q quit ↑↓ select {filter} p pause s sort: {sorted}");
    let text = if shorten::columns(&long) <= usize::from(width) {
        long
    } else {
        short
    };
    Line::from(text).style(Style::new().add_modifier(Modifier::DIM))
}

fn colour(verdict: Verdict) -> Style {
    match verdict {
        Verdict::Leak => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        Verdict::Suspect => Style::new().fg(Color::Yellow),
        Verdict::Steady => Style::new().fg(Color::Green),
        Verdict::Unknown => Style::new(),
    }
}
