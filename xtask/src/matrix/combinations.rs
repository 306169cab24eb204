//! The combinations: which tokio, which profile, which way of linking.
//!
//! In: nothing. Out: at most 150 combinations, since a full run takes hours, each with a name of its own and with what leakmon
//! should make of it. It builds nothing.

/// Versions in every profile: one of each shape of tokio's tables since 1.10, and the newest.
const IN_EVERY_PROFILE: [&str; 8] = [
    "1.54.1", "1.20.6", "1.22.0", "1.10.1", "1.17.0", "1.23.1", "1.38.2", "1.46.1",
];
/// Versions between, in the two profiles that differ most.
const BETWEEN: [&str; 6] = ["1.14.1", "1.28.2", "1.32.1", "1.43.4", "1.49.0", "1.52.4"];
/// Versions that need symbols.
const OLD: [&str; 4] = ["1.9.0", "1.8.5", "1.4.0", "1.0.3"];
/// Other ways of building, each with the versions that are built so.
const SPECIAL: [(Variant, &[&str]); 12] = [
    (Variant::NonPie, &["1.54.1", "1.20.6", "1.10.1"]),
    (Variant::StaticPie, &["1.54.1"]),
    (Variant::Musl, &["1.54.1", "1.20.6"]),
    (Variant::Library, &["1.54.1"]),
    (Variant::TwoVersions, &["1.54.1"]),
    (Variant::Unstable, &["1.54.1", "1.46.1"]),
    (Variant::V0, &["1.54.1", "1.20.6", "1.8.5"]),
    (Variant::Native, &["1.54.1", "1.20.6"]),
    (Variant::Relr, &["1.54.1", "1.20.6"]),
    (Variant::Bfd, &["1.54.1", "1.20.6"]),
    (Variant::Jemalloc, &["1.54.1", "1.20.6"]),
    (Variant::Mimalloc, &["1.54.1", "1.20.6"]),
];
/// Linked with the version itself in [`Variant::TwoVersions`].
pub(super) const SECOND: &str = "1.22.0";

/// A cargo profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Profile {
    Dev,
    Release,
    Thin,
    Fat,
    /// Fat LTO, `opt-level = "z"`, `panic = "abort"`.
    Z,
}

impl Profile {
    const ALL: [Self; 5] = [Self::Release, Self::Fat, Self::Z, Self::Thin, Self::Dev];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
            Self::Thin => "thin",
            Self::Fat => "fat",
            Self::Z => "z",
        }
    }
}

/// A way of building; [`building`](super::building) knows the flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    Plain,
    NonPie,
    StaticPie,
    /// Static, with musl instead of glibc.
    Musl,
    /// tokio in a shared library that a C program loads.
    Library,
    TwoVersions,
    Unstable,
    V0,
    Native,
    Relr,
    Bfd,
    Jemalloc,
    Mimalloc,
}

impl Variant {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::NonPie => "nonpie",
            Self::StaticPie => "static-pie",
            Self::Musl => "musl",
            Self::Library => "library",
            Self::TwoVersions => "two-versions",
            Self::Unstable => "unstable",
            Self::V0 => "v0",
            Self::Native => "native",
            Self::Relr => "relr",
            Self::Bfd => "bfd",
            Self::Jemalloc => "jemalloc",
            Self::Mimalloc => "mimalloc",
        }
    }
}

/// What leakmon should make of a combination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expectation {
    Exact,
    /// Refused with the reason.
    Refused,
}

/// One program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Combination {
    pub(super) name: String,
    pub(super) tokio: &'static str,
    pub(super) profile: Profile,
    pub(super) variant: Variant,
    pub(super) stripped: bool,
}

impl Combination {
    fn new(tokio: &'static str, profile: Profile, variant: Variant, stripped: bool) -> Self {
        let mut name = format!("{tokio}-");
        name.push_str(match variant {
            Variant::Plain => profile.name(),
            variant => variant.name(),
        });
        if stripped {
            name.push_str("-stripped");
        }
        Self {
            name,
            tokio,
            profile,
            variant,
            stripped,
        }
    }

    /// The same before symbols were removed.
    pub(super) fn unstripped(&self) -> Self {
        Self::new(self.tokio, self.profile, self.variant, false)
    }

    /// Minor number of the version.
    pub(super) fn minor(&self) -> u32 {
        let minor = self.tokio.split('.').nth(1).and_then(|minor| minor.parse().ok());
        minor.unwrap_or_default()
    }

    pub(super) fn expectation(&self) -> Expectation {
        // Before 1.10 only a symbol tells where a task ends, and in dev always.
        if self.stripped && (self.minor() < 10 || self.profile == Profile::Dev) {
            Expectation::Refused
        } else {
            Expectation::Exact
        }
    }
}

/// All combinations, those that are likeliest to fail first.
pub(super) fn all() -> Vec<Combination> {
    let mut found = Vec::new();
    for (variant, versions) in SPECIAL {
        found.extend(
            versions
                .iter()
                .map(|tokio| Combination::new(tokio, Profile::Release, variant, false)),
        );
    }
    found.push(Combination::new(
        IN_EVERY_PROFILE[0],
        Profile::Release,
        Variant::Musl,
        true,
    ));
    for profile in Profile::ALL {
        for tokio in IN_EVERY_PROFILE {
            found.push(Combination::new(tokio, profile, Variant::Plain, false));
            if profile != Profile::Dev || tokio == IN_EVERY_PROFILE[0] {
                found.push(Combination::new(tokio, profile, Variant::Plain, true));
            }
        }
    }
    for tokio in OLD {
        for profile in Profile::ALL {
            found.push(Combination::new(tokio, profile, Variant::Plain, false));
        }
        found.push(Combination::new(tokio, Profile::Release, Variant::Plain, true));
    }
    for tokio in BETWEEN {
        for (profile, stripped) in [(Profile::Release, false), (Profile::Fat, false), (Profile::Fat, true)] {
            found.push(Combination::new(tokio, profile, Variant::Plain, stripped));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const COMBINATIONS_MAX: usize = 150;

    #[test]
    fn names_are_unique_and_not_too_many() {
        let all = all();
        let names: BTreeSet<&str> = all.iter().map(|combination| combination.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!((60..=COMBINATIONS_MAX).contains(&all.len()), "{}", all.len());
    }

    #[test]
    fn what_needs_symbols_is_refused_without_them() {
        for (name, expected) in [
            ("1.54.1-release-stripped", Expectation::Exact),
            ("1.10.1-fat-stripped", Expectation::Exact),
            ("1.54.1-dev-stripped", Expectation::Refused),
            ("1.8.5-release-stripped", Expectation::Refused),
            ("1.8.5-release", Expectation::Exact),
            ("1.54.1-dev", Expectation::Exact),
        ] {
            let combination = all().into_iter().find(|combination| combination.name == name);
            assert_eq!(combination.map(|found| found.expectation()), Some(expected), "{name}");
        }
    }
}
