//! The one place where names from a watched process are made harmless.
//!
//! In: text from symbol tables, `/proc` and ELF notes, which anybody may have written. Out: text of bounded length
//! without characters that a terminal, a label or a line-based format would obey. It does not shorten for looks:
//! `shorten` does.

use std::borrow::Cow;

/// Longest name, in characters, in tables, labels and folded stacks. The metrics server keeps every label in memory; a
/// generic future's type easily has thousands of characters.
pub const NAME_CHARS_MAX: usize = 256;

/// Stands where something was cut out.
pub const ELLIPSIS: char = '…';

/// Characters that are no control characters for Unicode, yet hide or reorder text. Ranges are inclusive.
///
/// Source: Unicode 16 `DerivedCoreProperties.txt` (`Default_Ignorable_Code_Point`), `PropList.txt` (`Bidi_Control`) and
/// the two separators U+2028 and U+2029, which some viewers show as line ends.
const DECEPTIVE: [(char, char); 15] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Whether a terminal could obey the character, or a reader not see it: controls (C0, DEL, C1), marks that change the
/// direction of text, and characters without width.
#[must_use]
pub fn is_hostile(character: char) -> bool {
    character.is_control()
        || (character > '~'
            && DECEPTIVE
                .iter()
                .any(|&(first, last)| (first..=last).contains(&character)))
}

/// A name for a terminal or a metric label: hostile characters as `\n` or `\u{1b}`, at most [`NAME_CHARS_MAX`]
/// characters of which the middle is cut out where there are more. Borrows where nothing has to change.
#[must_use]
pub fn name(text: &str) -> Cow<'_, str> {
    let text = bound(text);
    if !text.chars().any(is_hostile) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_hostile(character) {
            escaped.extend(character.escape_default());
        } else {
            escaped.push(character);
        }
    }
    // Escaping lengthens: what a hostile name loses by the second cut is no loss.
    Cow::Owned(bound(&escaped).into_owned())
}

/// A name that [`name`] or [`code_place`] gave, as one frame of a folded stack: `;`, which separates frames, becomes
/// `:`.
#[must_use]
pub fn folded_frame(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains(';') {
        Cow::Owned(text.replace(';', ":"))
    } else {
        text
    }
}

/// What a place in code is called: its function, else `image+0xoffset`, else the bare offset; `None` where nothing is
/// known. As harmless and about as long as [`name`].
#[must_use]
pub fn code_place<'a>(function: Option<&'a str>, image: Option<&str>, offset: Option<u64>) -> Option<Cow<'a, str>> {
    match (function, image, offset) {
        (Some(function), _, _) => Some(name(function)),
        (None, Some(image), Some(offset)) => Some(Cow::Owned(format!("{}+{offset:#x}", name(image)))),
        (None, None, Some(offset)) => Some(Cow::Owned(format!("{offset:#x}"))),
        (None, _, None) => None,
    }
}

/// Cuts the middle out of what is longer than [`NAME_CHARS_MAX`]; a name's end often tells more than its middle.
fn bound(text: &str) -> Cow<'_, str> {
    if text.len() <= NAME_CHARS_MAX || text.chars().nth(NAME_CHARS_MAX).is_none() {
        return Cow::Borrowed(text);
    }
    let tail = NAME_CHARS_MAX / 2;
    let head = NAME_CHARS_MAX - tail - 1;
    let head_end = text.char_indices().nth(head).map_or(text.len(), |(at, _)| at);
    let tail_start = text.char_indices().rev().nth(tail - 1).map_or(0, |(at, _)| at);
    Cow::Owned(format!("{}{ELLIPSIS}{}", &text[..head_end], &text[tail_start..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_characters_become_visible() {
        for (given, want) in [
            ("app::run", "app::run"),
            ("", ""),
            ("größe::日本::क्षि", "größe::日本::क्षि"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\tc\rd\0e\u{7f}", "a\\nb\\tc\\rd\\u{0}e\\u{7f}"),
            ("c1\u{9b}31m", "c1\\u{9b}31m"),
            ("\u{202e}exe.txt\u{202c}", "\\u{202e}exe.txt\\u{202c}"),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
            (
                "z\u{200b}w\u{200d}\u{feff}\u{ad}",
                "z\\u{200b}w\\u{200d}\\u{feff}\\u{ad}",
            ),
            ("line\u{2028}two\u{2029}", "line\\u{2028}two\\u{2029}"),
            ("tag\u{e0041}", "tag\\u{e0041}"),
        ] {
            assert_eq!(name(given), want);
        }
    }

    #[test]
    fn a_name_at_the_bound_is_whole_and_one_above_is_cut() {
        let whole = "é".repeat(NAME_CHARS_MAX);
        assert_eq!(name(&whole), whole);
        let long = format!("{}::{{{{closure}}}}", "x".repeat(NAME_CHARS_MAX));
        let cut = name(&long);
        assert_eq!(cut.chars().count(), NAME_CHARS_MAX);
        assert!(
            cut.starts_with("xxx") && cut.contains("x…x") && cut.ends_with("::{{closure}}"),
            "{cut}"
        );
    }

    #[test]
    fn a_place_is_called_by_what_is_known() {
        for (function, image, offset, want) in [
            (Some("app::run"), Some("app"), Some(0x12), Some("app::run")),
            (None, Some("app\n"), Some(0x12), Some("app\\n+0x12")),
            (None, None, Some(0x7fff_0000), Some("0x7fff0000")),
            (None, Some("app"), None, None),
            (None, None, None, None),
        ] {
            assert_eq!(code_place(function, image, offset).as_deref(), want);
        }
    }

    #[test]
    fn a_frame_has_no_separator() {
        assert_eq!(
            folded_frame(name("core::array::<[u8; 4]>\n")),
            "core::array::<[u8: 4]>\\n"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_bounded_and_harmless(
            text in "(\\PC|\\pC|[\\x00-\\x1f\u{202a}-\u{202e}\u{200b};]|x{1,90}){0,400}",
        ) {
            for escaped in [name(&text), folded_frame(name(&text))] {
                prop_assert!(escaped.chars().count() <= NAME_CHARS_MAX);
                prop_assert!(!escaped.chars().any(is_hostile));
            }
            prop_assert!(!folded_frame(name(&text)).contains(';'));
        }
    }
}
