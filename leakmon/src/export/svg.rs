//! A flame graph in SVG: each frame as wide as the live tasks that were born under it.
//!
//! In: a report, or the folded stacks of two. Out: one SVG, drawn by inferno, whose titles hold the exact counts; it zooms and
//! searches by the script that inferno puts into it. Names arrive escaped by [`super::folded`], and inferno escapes them for XML.

use super::report::Report;
use super::{RenderOptions, folded};
use inferno::flamegraph::{self, Options, Palette, color::BasicPalette};

/// Folded stacks that are drawn; the widest, where there are more. Far more than a screen has pixels.
const STACKS_MAX: usize = 10_000;

/// Media type.
pub const CONTENT_TYPE: &str = "image/svg+xml";

/// The report as a flame graph.
#[must_use]
pub fn render(report: &Report, options: &RenderOptions) -> Vec<u8> {
    let folded = String::from_utf8_lossy(&folded::render(report, options)).into_owned();
    let lines = widest(folded.lines().collect(), last_number);
    let mut look = look("Live tasks by where they were spawned");
    draw(&mut look, &lines)
}

/// Two folded reports as one graph: `lines` are folded stacks with two counts, the second of which gives the width. Red grew
/// and blue shrank; with `from_first`, the first count is the newer one.
#[must_use]
pub fn differential(lines: &[String], title: &str, from_first: bool) -> Vec<u8> {
    let lines = widest(lines.iter().map(String::as_str).collect(), last_number);
    let mut look = look(title);
    look.negate_differentials = from_first;
    draw(&mut look, &lines)
}

fn look(title: &str) -> Options<'static> {
    let mut look = Options::default();
    title.clone_into(&mut look.title);
    "tasks".clone_into(&mut look.count_name);
    look.colors = Palette::Basic(BasicPalette::Orange);
    // The same report gives the same picture.
    look.deterministic = true;
    look
}

fn draw(look: &mut Options<'_>, lines: &[String]) -> Vec<u8> {
    let mut svg = Vec::new();
    let drawn = flamegraph::from_lines(look, lines.iter().map(String::as_str), &mut svg);
    match drawn {
        Ok(()) => {
            svg.push(b'\n');
            svg
        }
        Err(_) => EMPTY.as_bytes().to_owned(),
    }
}

/// What is shown where there is nothing to draw; inferno would speak of an error.
const EMPTY: &str = r##"<svg version="1.1" width="1200" height="80" viewBox="0 0 1200 80" xmlns="http://www.w3.org/2000/svg">
<title>No live tasks</title>
<rect width="100%" height="100%" fill="#f8f8f8"/>
<text x="600" y="45" text-anchor="middle" font-family="sans-serif" font-size="16">No task is alive.</text>
</svg>
"##;

/// The lines with the most, sorted by name. inferno takes a line that begins with `# ` for a comment.
fn widest(mut lines: Vec<&str>, width: fn(&str) -> u64) -> Vec<String> {
    if lines.len() > STACKS_MAX {
        lines.sort_by_key(|line| std::cmp::Reverse(width(line)));
        lines.truncate(STACKS_MAX);
    }
    let mut kept: Vec<String> = lines
        .into_iter()
        .map(|line| {
            line.strip_prefix("# ")
                .map_or_else(|| line.to_owned(), |rest| format!("#_{rest}"))
        })
        .collect();
    kept.sort_unstable();
    kept
}

fn last_number(line: &str) -> u64 {
    line.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::samples;
    use quick_xml::{Reader, events::Event};

    /// Texts of all `title` elements; fails where the text is no well-formed XML.
    fn titles(svg: &[u8]) -> Vec<String> {
        let mut reader = Reader::from_reader(svg);
        let (mut titles, mut open, mut depth) = (Vec::new(), None, 0_i64);
        let mut buffer = Vec::new();
        loop {
            match reader.read_event_into(&mut buffer).unwrap() {
                Event::Start(start) => {
                    start.attributes().for_each(|attribute| {
                        attribute.unwrap();
                    });
                    depth += 1;
                    open = (start.name().as_ref() == b"title").then(String::new);
                }
                Event::Text(text) => {
                    if let Some(open) = &mut open {
                        open.push_str(&text.decode().unwrap());
                    }
                }
                Event::GeneralRef(reference) => {
                    if let Some(open) = &mut open {
                        open.push_str(&format!("&{};", reference.decode().unwrap()));
                    }
                }
                Event::End(_) => {
                    titles.extend(open.take());
                    depth -= 1;
                }
                Event::Eof => break,
                _ => {}
            }
            buffer.clear();
        }
        assert_eq!(depth, 0, "every element is closed");
        titles
    }

    #[test]
    fn titles_hold_the_exact_counts() {
        let titles = titles(&render(&samples::busy(), &RenderOptions::default()));
        for want in [
            "all (49 tasks, 100%)",
            "app::handle_conn::{{closure}}] (40 tasks",
            "worker (2 tasks",
            "[truncated] (3 tasks",
        ] {
            assert!(titles.iter().any(|title| title.contains(want)), "{want}: {titles:?}");
        }
    }

    #[test]
    fn hostile_names_stay_text() {
        let mut report = samples::hostile();
        report.targets[0].exe = "/tmp/# <x>".to_owned();
        report.callsites[0].stacks[0].frames[0].function = Some("</title><script>alert(1)</script>&amp;".to_owned());
        let svg = render(&report, &RenderOptions::default());
        let titles = titles(&svg);
        assert!(
            titles
                .iter()
                .any(|title| title.starts_with("&lt;/title&gt;&lt;script&gt;")),
            "{titles:?}"
        );
        assert!(titles.iter().any(|title| title.contains("all (2 tasks")), "{titles:?}");
        assert!(!String::from_utf8(svg).unwrap().contains("<script>alert"));
    }

    #[test]
    fn an_empty_report_says_so() {
        let svg = render(&samples::empty(), &RenderOptions::default());
        assert_eq!(titles(&svg), ["No live tasks"]);
    }

    #[test]
    fn the_widest_stacks_are_kept_at_the_bound() {
        let lines: Vec<String> = (0..=STACKS_MAX)
            .map(|number| format!("a;f{number} {}", number + 1))
            .collect();
        let kept = widest(lines.iter().map(String::as_str).collect(), last_number);
        assert_eq!(kept.len(), STACKS_MAX);
        assert!(!kept.contains(&"a;f0 1".to_owned()), "the narrowest is left out");
    }

    #[test]
    fn a_vanished_stack_is_as_wide_as_it_was() {
        // New count first, old count second: the width is the old one.
        let lines = ["app;f;[task] 0 40".to_owned(), "app;g;[task] 3 2".to_owned()];
        let titles = titles(&differential(&lines, "old and new", true));
        assert!(
            titles.iter().any(|title| title.starts_with("f (40 tasks")),
            "{titles:?}"
        );
        assert!(
            titles
                .iter()
                .any(|title| title.starts_with("[task] (40 tasks") && title.contains("-95.24%")),
            "{titles:?}"
        );
    }
}
