//! The log: one line an event, on stderr, with nothing that a terminal would obey.
//!
//! In: events of `tracing`. Out: lines. Texts in them may come from a target (a path, a name, an error that quotes one), so each is
//! escaped and bounded here, whoever wrote it.

use crate::export::escape::is_hostile;
use std::{fmt, io::IsTerminal};
use tracing::field::Field;
use tracing_subscriber::{
    EnvFilter,
    field::MakeExt,
    fmt::format::{Writer, debug_fn},
};

/// Characters of one text. A path has 4,096 bytes at most and is rarely longer than a line.
const TEXT_CHARS_MAX: usize = 2_000;

/// Writes events to stderr from now on: those of `warn` and worse, and with each `verbose` one level more.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    // Results go to stdout, everything else to stderr.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("leakmon={level}")))
        .fmt_fields(debug_fn(write_field).delimited(" "))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .init();
}

fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let text = harmless(&format!("{value:?}"));
    match field.name() {
        "message" => writer.write_str(&text),
        name => write!(writer, "{name}={text}"),
    }
}

fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len().min(TEXT_CHARS_MAX));
    for (number, character) in text.chars().enumerate() {
        if number == TEXT_CHARS_MAX {
            shown.push('…');
            break;
        }
        if is_hostile(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_harmless() {
        assert_eq!(harmless("/a b\n\u{1b}[2J\u{202e}"), "/a b\\n\\u{1b}[2J\\u{202e}");
        for (chars, shown) in [(TEXT_CHARS_MAX, TEXT_CHARS_MAX), (1 << 20, TEXT_CHARS_MAX + 1)] {
            assert_eq!(harmless(&"x".repeat(chars)).chars().count(), shown);
        }
    }
}
