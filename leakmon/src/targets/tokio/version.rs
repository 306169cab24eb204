//! Which tokio an image holds: read from the paths of its panic messages in read-only data.
//!
//! In: an image. Out: a version such as `1.54.1`. Paths may have been remapped away, then there is none.

use super::super::image::Image;
use std::collections::BTreeMap;

/// As in `…/registry/src/…/tokio-1.54.1/src/runtime/…`.
const BEFORE: &[u8] = b"tokio-";
const AFTER: &[u8] = b"/src/";
/// Longest version, pre-release and build included.
const VERSION_BYTES_MAX: usize = 32;
/// At most this much data is searched.
const SEARCHED_BYTES_MAX: usize = 256 << 20;
/// Different versions told apart; a program has one or two.
const VERSIONS_MAX: usize = 16;

/// The version that most paths name.
pub(super) fn find(image: &Image<'_>) -> Option<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut budget = SEARCHED_BYTES_MAX;
    for segment in image.segments.iter().filter(|segment| !segment.executable) {
        let data = &segment.data[..segment.data.len().min(budget)];
        budget -= data.len();
        for (index, _) in data
            .windows(BEFORE.len())
            .enumerate()
            .filter(|(_, window)| *window == BEFORE)
        {
            let rest = &data[index + BEFORE.len()..];
            let Some(version) = version(rest) else { continue };
            if counts.len() < VERSIONS_MAX || counts.contains_key(version) {
                *counts.entry(version).or_default() += 1;
            }
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map(|(version, _)| version.to_owned())
}

/// `1.54.1` of `1.54.1/src/…`.
fn version(rest: &[u8]) -> Option<&str> {
    let rest = &rest[..rest.len().min(VERSION_BYTES_MAX + AFTER.len())];
    let end = rest.windows(AFTER.len()).position(|window| window == AFTER)?;
    let version = std::str::from_utf8(&rest[..end]).ok()?;
    let mut numbers = version.split(['.', '-', '+']);
    let numeric = (0..3).all(|_| numbers.next().is_some_and(|number| number.parse::<u32>().is_ok()));
    let printable = version
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte));
    (numeric && printable).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_before_the_sources_counts() {
        for (rest, expected) in [
            (&b"1.54.1/src/runtime/task/core.rs"[..], Some("1.54.1")),
            (b"1.0.0-alpha.1/src/lib.rs", Some("1.0.0-alpha.1")),
            (b"util-0.7.1/src/lib.rs", None),
            (b"1.54/src/lib.rs", None),
            (b"1.54.x/src/lib.rs", None),
            (b"1.54.1\x1b[2J/src/lib.rs", None),
            (b"1.54.1", None),
            (b"1.54.1111111111111111111111111111111111111/src/", None),
            (b"", None),
        ] {
            assert_eq!(version(rest), expected);
        }
    }
}
