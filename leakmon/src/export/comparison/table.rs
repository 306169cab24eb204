//! A comparison as text for a person: what grew first, then what is fixed, and how much is the same.

use super::{Change, Comparison, Site};
use crate::export::{RenderOptions, escape, shorten};
use std::fmt::Write;

/// Callsites shown; JSON has all that changed.
const SITES_MAX: usize = 50;

/// Columns before the names: change, old, new, kind, with their gaps.
const NUMBERS: usize = 8 + 8 + 8 + 10;
/// Narrower terminals are taken to be this wide.
const WIDTH_MIN: usize = 60;

/// The comparison as text.
#[must_use]
pub fn render(comparison: &Comparison, options: &RenderOptions) -> Vec<u8> {
    let room = options
        .width
        .map_or(usize::MAX, |width| usize::from(width).max(WIDTH_MIN) - NUMBERS);
    let mut text = String::new();
    let mut line = |line: &str| {
        let _ = writeln!(text, "{line}");
    };
    let changed: Vec<&Site> = comparison
        .sites
        .iter()
        .filter(|site| site.change != Change::Same)
        .collect();
    if !changed.is_empty() {
        line(&row("CHANGE", "OLD", "NEW", "KIND", "WHERE"));
    }
    for site in changed.iter().take(SITES_MAX) {
        let (old, new) = (site.old.live.to_string(), site.new.live.to_string());
        let mut names = names(site, room).into_iter();
        let first = names.next().unwrap_or_default();
        let plain = row(site.change.as_str(), &old, &new, site.kind, &first);
        line(&painted(site.change, plain, options.colour));
        for name in names {
            line(&format!("{:NUMBERS$}{name}", ""));
        }
        if let Some(evidence) = site.evidence.as_deref().filter(|_| site.change == Change::Grew) {
            let evidence = format!("{}: {}", site.new.verdict.as_str(), escape::name(evidence));
            line(&format!("{:NUMBERS$}{}", "", shorten::middle(&evidence, room)));
        }
    }
    if changed.len() > SITES_MAX {
        line(&format!(
            "{} more have changed; --format json has all",
            changed.len() - SITES_MAX
        ));
    }
    if !changed.is_empty() {
        line("");
    }
    line(&summary(comparison));
    text.into_bytes()
}

fn row(change: &str, old: &str, new: &str, kind: &str, names: &str) -> String {
    format!("{change:6} {old:>7} {new:>7}  {kind:8}  {names}")
        .trim_end()
        .to_owned()
}

/// What is spawned and where; on a line each where there is little room.
fn names(site: &Site, room: usize) -> Vec<String> {
    let task_type = site.task_type.as_deref().map(escape::name);
    let place = site.function.as_deref().map(|function| match &site.line {
        Some(line) => format!("{function} at {line}"),
        None => function.to_owned(),
    });
    match (task_type, place) {
        (Some(task_type), Some(place)) => {
            let whole = format!("{task_type} spawned in {place}");
            if shorten::columns(&whole) <= room {
                vec![whole]
            } else {
                let task_type = shorten::rust_name(&task_type, room).into_owned();
                vec![task_type, format!("in {}", shorten::middle(&place, room - 3))]
            }
        }
        (Some(name), None) => vec![shorten::rust_name(&name, room).into_owned()],
        (None, Some(place)) => vec![shorten::middle(&place, room).into_owned()],
        (None, None) => vec!["unknown".to_owned()],
    }
}

/// Select Graphic Rendition (ECMA-48 8.3.117): red for what grew, green for what is fixed.
fn painted(change: Change, row: String, colour: bool) -> String {
    match change {
        Change::Grew if colour => format!("\u{1b}[31m{row}\u{1b}[0m"),
        Change::Fixed if colour => format!("\u{1b}[32m{row}\u{1b}[0m"),
        _ => row,
    }
}

fn summary(comparison: &Comparison) -> String {
    let part = |change: Change, word: &str| match comparison.count(change) {
        0 => None,
        count => Some(format!("{count} {word}")),
    };
    let parts: Vec<String> = [
        (Change::Grew, "grew"),
        (Change::Fixed, "fixed"),
        (Change::Gone, "gone"),
        (Change::Shrank, "shrank"),
        (Change::Same, "the same"),
    ]
    .into_iter()
    .filter_map(|(change, word)| part(change, word))
    .collect();
    let (old, new) = comparison.live;
    if parts.is_empty() {
        return "Neither report has a callsite.".to_owned();
    }
    format!("Callsites: {}.\nAlive: {old} before, {new} after.", parts.join(", "))
}
