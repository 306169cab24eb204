//! Makes Rust names and paths fit a number of terminal columns.
//!
//! In: text that [`super::escape`] has made harmless, and a width. Out: text no wider. It does not escape.

use super::escape::ELLIPSIS;
use std::borrow::Cow;
use unicode_width::UnicodeWidthChar;

/// Columns that a terminal needs for the text, each character taken for itself.
#[must_use]
pub(crate) fn columns(text: &str) -> usize {
    text.chars().map(|character| character.width().unwrap_or(0)).sum()
}

/// A type or function name in at most `width` columns: whole if it fits, then without generic arguments of depth 2 and
/// more, then without any, then with its middle cut out.
#[must_use]
pub(crate) fn rust_name(name: &str, width: usize) -> Cow<'_, str> {
    if columns(name) <= width {
        return Cow::Borrowed(name);
    }
    let mut shortest = None;
    for depth in [1, 0] {
        let Some(elided) = without_arguments(name, depth) else {
            break;
        };
        if columns(&elided) <= width {
            return Cow::Owned(elided);
        }
        shortest = Some(elided);
    }
    Cow::Owned(middle(shortest.as_deref().unwrap_or(name), width).into_owned())
}

/// Any text in at most `width` columns, the middle cut out where it is longer.
#[must_use]
pub(crate) fn middle(text: &str, width: usize) -> Cow<'_, str> {
    if columns(text) <= width {
        return Cow::Borrowed(text);
    }
    if width <= 1 {
        return Cow::Owned(if width == 1 {
            ELLIPSIS.to_string()
        } else {
            String::new()
        });
    }
    // The end has the closure, the file name or the line: it gets the larger half.
    let head_width = (width - 1) / 2;
    let head_end = fitting_prefix(text.char_indices(), head_width).unwrap_or(text.len());
    let tail_start = fitting_suffix(text, width - 1 - head_width);
    Cow::Owned(format!("{}{ELLIPSIS}{}", &text[..head_end], &text[tail_start..]))
}

/// Where the first character starts that no longer fits.
fn fitting_prefix(characters: impl Iterator<Item = (usize, char)>, width: usize) -> Option<usize> {
    let mut used = 0;
    for (at, character) in characters {
        used += character.width().unwrap_or(0);
        if used > width {
            return Some(at);
        }
    }
    None
}

/// Where the longest suffix starts that fits.
fn fitting_suffix(text: &str, width: usize) -> usize {
    let mut used = 0;
    let mut start = text.len();
    for (at, character) in text.char_indices().rev() {
        used += character.width().unwrap_or(0);
        if used > width {
            break;
        }
        start = at;
    }
    start
}

/// The name with `…` for all generic arguments nested deeper than `depth`; `None` where the angle brackets do not pair
/// up.
///
/// `<T as Trait>::f` begins a path, so its bracket counts for depth but is not elided at depth 0; the `>` of `->`
/// closes nothing.
fn without_arguments(name: &str, depth: usize) -> Option<String> {
    let mut kept = String::with_capacity(name.len());
    let mut open = 0_usize;
    // Depth outside the bracket whose content is being left out.
    let mut elided_at = None;
    let mut previous = ' ';
    for character in name.chars() {
        match character {
            '<' => {
                if elided_at.is_none() {
                    kept.push('<');
                    let arguments = previous.is_alphanumeric() || matches!(previous, '_' | ':');
                    if open >= depth && arguments {
                        kept.push(ELLIPSIS);
                        elided_at = Some(open);
                    }
                }
                open += 1;
            }
            '>' if previous != '-' => {
                open = open.checked_sub(1)?;
                if elided_at.is_none_or(|at| at == open) {
                    kept.push('>');
                    elided_at = None;
                }
            }
            _ if elided_at.is_none() => kept.push(character),
            _ => {}
        }
        previous = character;
    }
    (open == 0).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_lose_the_least_that_fits() {
        let nested = "app::Retry<app::Timeout<app::fetch::{{closure}}>, u8>::run::{{closure}}";
        for (name, width, want) in [
            ("app::handle_conn::{{closure}}", 29, "app::handle_conn::{{closure}}"),
            (nested, 80, nested),
            (nested, 60, "app::Retry<app::Timeout<…>, u8>::run::{{closure}}"),
            (nested, 40, "app::Retry<…>::run::{{closure}}"),
            (nested, 21, "app::Retry…{closure}}"),
            ("app::map::<fn(u8) -> Vec<u8>>", 20, "app::map::<…>"),
            ("app::odd>::shift<<", 10, "app:…ift<<"),
            ("日本::処理", 8, "日…処理"),
            ("abc", 1, "…"),
            ("abc", 0, ""),
        ] {
            let got = rust_name(name, width);
            assert_eq!(got, want, "{name} in {width}");
            assert!(columns(&got) <= width, "{got} in {width}");
        }
    }

    #[test]
    fn a_qualified_path_keeps_its_self_type() {
        let name = "<app::Pool<app::Connection<tls::Stream>> as app::Go>::go";
        assert_eq!(rust_name(name, 50), "<app::Pool<…> as app::Go>::go");
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_asked(name in "([a-z:<>{} -]|\\PC){0,60}", width in 0_usize..70) {
            prop_assert!(columns(&rust_name(&name, width)) <= width);
            prop_assert!(columns(&middle(&name, width)) <= width);
        }
    }
}
