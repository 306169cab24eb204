//! The live view of `leakmon top`: what is shown, and what keys do.
//!
//! In: one report after the other, and keys. Out: a [`View`], which [`page::draw`] puts on a screen of any size. It reads no
//! terminal and fetches nothing: the command does.

pub mod page;
mod trail;

use super::report::{CallsiteReport, Report};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::cmp::Ordering;
use trail::Trails;

/// Longest filter, in characters.
const FILTER_MAX: usize = 64;

/// What callsites are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Leaks first, then suspects, then by live count: the report's own order.
    #[default]
    Verdict,
    /// Most live first.
    Live,
    /// Fastest growth first.
    Growth,
    /// Oldest task first.
    Age,
    /// By task type and location.
    Name,
}

impl Order {
    const ALL: [Self; 5] = [Self::Verdict, Self::Live, Self::Growth, Self::Age, Self::Name];

    /// Its name on the screen.
    const fn word(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Live => "live",
            Self::Growth => "growth",
            Self::Age => "age",
            Self::Name => "name",
        }
    }

    /// The key that chooses it: the first letter, which is underlined on no terminal but told in the help.
    const fn key(self) -> char {
        match self {
            Self::Verdict => 'v',
            Self::Live => 'l',
            Self::Growth => 'g',
            Self::Age => 'a',
            Self::Name => 'n',
        }
    }

    fn compare(self, left: &CallsiteReport, right: &CallsiteReport) -> Ordering {
        let largest = |left: Option<f64>, right: Option<f64>| {
            right
                .unwrap_or(f64::NEG_INFINITY)
                .total_cmp(&left.unwrap_or(f64::NEG_INFINITY))
        };
        match self {
            Self::Verdict => Ordering::Equal,
            Self::Live => right.live.cmp(&left.live),
            Self::Growth => largest(left.growth_per_minute, right.growth_per_minute),
            Self::Age => largest(left.oldest_seconds, right.oldest_seconds),
            Self::Name => page::name(left).cmp(&page::name(right)),
        }
    }
}

/// What a key asks of whoever owns the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing: the view has changed, or it has not.
    Nothing,
    /// To end.
    Quit,
}

/// Who a callsite is, over reports.
type Id = (String, String);

/// What is shown.
#[derive(Debug, Default)]
pub struct View {
    report: Option<Report>,
    /// Why there is no newer one.
    trouble: Option<String>,
    trails: Trails,
    /// Indices of the callsites that are shown, in their order.
    shown: Vec<usize>,
    order: Order,
    filter: String,
    /// The filter is being typed.
    is_typing: bool,
    is_paused: bool,
    /// The callsite that is selected; the first where it is not shown, or none was chosen.
    selected: Option<Id>,
    /// Frames of its stack that are scrolled by.
    scrolled: usize,
}

impl View {
    /// Takes a report. While the view is paused the counts are only remembered for the sparklines.
    pub fn take(&mut self, report: Report) {
        self.trails.take(&report);
        self.trouble = None;
        if self.is_paused {
            return;
        }
        // Processes that have ended are told of once: what was seen last is worth more than an empty screen.
        let had = self.report.as_ref().is_some_and(|report| !report.targets.is_empty());
        if had && report.targets.is_empty() {
            self.trouble = Some("all processes have ended; this is the last that was seen".to_owned());
            return;
        }
        self.report = Some(report);
        self.arrange();
    }

    /// Says why there is no newer report; the last one stays.
    pub fn trouble(&mut self, why: String) {
        self.trouble = Some(why);
    }

    /// Takes a key.
    pub fn press(&mut self, key: KeyEvent) -> Asked {
        if key.kind == KeyEventKind::Release {
            return Asked::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            let quits = matches!(key.code, KeyCode::Char('c' | 'd'));
            return if quits { Asked::Quit } else { Asked::Nothing };
        }
        if self.is_typing {
            self.type_filter(key.code);
            return Asked::Nothing;
        }
        match key.code {
            KeyCode::Char('q') => return Asked::Quit,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Esc => self.set_filter(String::new()),
            KeyCode::Char('s') => self.sort(self.next_order()),
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::Home => self.select(isize::MIN),
            KeyCode::End => self.select(isize::MAX),
            KeyCode::PageDown => self.scrolled = self.scrolled.saturating_add(4),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(4),
            KeyCode::Char(character) => {
                if let Some(order) = Order::ALL.into_iter().find(|order| order.key() == character) {
                    self.sort(order);
                }
            }
            _ => {}
        }
        Asked::Nothing
    }

    fn type_filter(&mut self, code: KeyCode) {
        let mut filter = self.filter.clone();
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                filter.clear();
            }
            KeyCode::Backspace => {
                filter.pop();
            }
            KeyCode::Char(character) if filter.chars().count() < FILTER_MAX => filter.push(character),
            _ => {}
        }
        self.set_filter(filter);
    }

    fn set_filter(&mut self, filter: String) {
        self.filter = filter;
        self.arrange();
    }

    fn sort(&mut self, order: Order) {
        self.order = order;
        self.arrange();
    }

    fn next_order(&self) -> Order {
        let at = Order::ALL.iter().position(|order| *order == self.order).unwrap_or(0);
        Order::ALL[(at + 1) % Order::ALL.len()]
    }

    /// Moves the selection by so many rows, within the list.
    fn select(&mut self, by: isize) {
        let last = self.shown.len().saturating_sub(1);
        let row = self.row().saturating_add_signed(by.max(-(last as isize) - 1)).min(last);
        self.selected = self.callsite(row).map(id);
        self.scrolled = 0;
    }

    /// Chooses and sorts what is shown.
    fn arrange(&mut self) {
        let Some(report) = &self.report else { return };
        let wanted = self.filter.to_lowercase();
        let mut shown: Vec<usize> = (0..report.callsites.len())
            .filter(|index| wanted.is_empty() || matches(&report.callsites[*index], &wanted))
            .collect();
        // Stable: among equals the report's order stays.
        shown.sort_by(|left, right| self.order.compare(&report.callsites[*left], &report.callsites[*right]));
        self.shown = shown;
    }

    /// The row that is selected.
    fn row(&self) -> usize {
        let Some(selected) = &self.selected else { return 0 };
        (0..self.shown.len())
            .find(|row| self.callsite(*row).is_some_and(|callsite| id(callsite) == *selected))
            .unwrap_or(0)
    }

    fn callsite(&self, row: usize) -> Option<&CallsiteReport> {
        self.report.as_ref()?.callsites.get(*self.shown.get(row)?)
    }
}

fn id(callsite: &CallsiteReport) -> Id {
    (callsite.target.clone(), callsite.id.clone())
}

/// Whether the filter, in lower case, is in anything that names the callsite.
fn matches(callsite: &CallsiteReport, wanted: &str) -> bool {
    let location = &callsite.location;
    let pid = callsite.pid.to_string();
    [
        callsite.task_type.as_deref(),
        location.function.as_deref(),
        location.file.as_deref(),
        location.image.as_deref(),
        Some(callsite.verdict.as_str()),
        Some(callsite.kind),
        Some(pid.as_str()),
    ]
    .into_iter()
    .flatten()
    .any(|text| text.to_lowercase().contains(wanted))
}

#[cfg(test)]
mod tests;
