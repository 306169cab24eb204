//! Which tokio an image holds: read from the paths of its panic messages in read-only data.
//!
//! In: an image. Out: versions such as `1.54.1`, several where several were linked. Paths may have been remapped away, then there
//! is none.

use super::super::image::Image;
use std::collections::BTreeSet;

/// As in `…/registry/src/…/tokio-1.54.1/src/runtime/…`.
const BEFORE: &[u8] = b"tokio-";
const AFTER: &[u8] = b"/src/";
/// Longest version, pre-release and build included.
const VERSION_BYTES_MAX: usize = 32;
/// At most this much data is searched.
const SEARCHED_BYTES_MAX: usize = 256 << 20;
/// Different versions told apart; a program has one or two.
const VERSIONS_MAX: usize = 16;

/// The versions that paths name, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Versions(Vec<String>);

impl Versions {
    /// All of them, as a person reads them.
    pub(super) fn shown(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| self.0.join(", "))
    }

    /// The minor numbers of versions of tokio 1.
    pub(super) fn minors(&self) -> Minors {
        let minor = |version: &String| version.strip_prefix("1.")?.split('.').next()?.parse().ok();
        Minors(self.0.iter().filter_map(minor).collect())
    }
}

/// Minor numbers of versions of tokio 1; none where no path names a version.
#[derive(Debug, Default)]
pub(super) struct Minors(pub(super) Vec<u32>);

/// Finds the versions.
pub(super) fn find(image: &Image<'_>) -> Versions {
    let mut found: BTreeSet<&str> = BTreeSet::new();
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
            if found.len() < VERSIONS_MAX {
                found.insert(version);
            }
        }
    }
    let mut versions: Vec<String> = found.into_iter().map(str::to_owned).collect();
    versions.sort_by_key(|version| {
        let numbers = version.split(['.', '-', '+']).take(3).map(|number| number.parse().ok());
        numbers.collect::<Vec<Option<u32>>>()
    });
    Versions(versions)
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
