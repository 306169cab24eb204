//! The right line, in every build that people ship: who spawned each task, against the victims' own record.
//!
//! Two measures. *Named*: births at callsites whose location is the function that the victim says spawned them. *Met*: births
//! whose stack goes through the machine code that spawned them, which also holds where nothing is named: the victim notes
//! an address in that code, and the function's bounds are read from the symbols of the same program before it was stripped.

use super::{
    host::{self, Build},
    observer::Run,
    truth::{Report, Truth},
};
use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// Every build, where it is and the same program with symbols.
const BUILDS: [(Build, Build); 7] = [
    (Build::Release, Build::Release),
    (Build::ReleaseStripped, Build::Release),
    (Build::Fat, Build::Fat),
    (Build::FatStripped, Build::Fat),
    (Build::Z, Build::Z),
    (Build::Dev, Build::Dev),
    (Build::FramePointers, Build::FramePointers),
];

/// Of births: named or met as the victim says.
const RIGHT_SHARE: f64 = 0.999;
/// Of births: their stack reaches the thread's start.
const ROOT_SHARE: f64 = 0.99;

#[test]
fn the_spawning_function_is_named_or_met_in_every_build() {
    for victim in ["every_spawn", "leaky_registry"] {
        for (build, twin) in BUILDS {
            let test = "the_spawning_function_is_named_or_met_in_every_build";
            let (Some(path), Some(twin)) = (
                host::victim_built(test, build, victim),
                host::victim_built(test, twin, victim),
            ) else {
                return;
            };
            let run = Run::of(&[], &path, &[]);
            let (truth, report) = (run.truth(), &run.report);
            assert_eq!(report.task(), truth.total(), "{victim} {build:?}");
            let met = met(&truth, report, &Functions::read(&twin));
            let rooted = rooted(report);
            println!("{victim} {build:?}: met {met}, reach the root {rooted}");
            assert!(met.of_one() >= RIGHT_SHARE, "{victim} {build:?}: met {met}");
            assert!(
                rooted.of_one() >= ROOT_SHARE,
                "{victim} {build:?}: reach the root {rooted}"
            );
            // Without symbols nothing has a name.
            if path == twin {
                let named = named(&truth, report);
                println!("{victim} {build:?}: named {named}");
                assert!(named.of_one() >= RIGHT_SHARE, "{victim} {build:?}: named {named}");
            }
        }
    }
}

/// So many of so many.
struct Share {
    right: u64,
    all: u64,
}

impl Share {
    /// Births that both sides ascribe to the same function, of all that the victim counted.
    fn between(expected: &BTreeMap<String, u64>, observed: &BTreeMap<String, u64>) -> Self {
        let seen = |function: &String| observed.get(function).copied().unwrap_or(0);
        Self {
            right: expected
                .iter()
                .map(|(function, births)| seen(function).min(*births))
                .sum(),
            all: expected.values().sum(),
        }
    }

    fn of_one(&self) -> f64 {
        assert_ne!(self.all, 0);
        self.right as f64 / self.all as f64
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{:.2} % ({} of {})",
            100.0 * self.of_one(),
            self.right,
            self.all
        )
    }
}

fn named(truth: &Truth, report: &Report) -> Share {
    let mut expected = BTreeMap::new();
    for site in truth.sites() {
        *expected.entry(site.spawned_by).or_default() += site.counts.spawned;
    }
    let mut observed = BTreeMap::new();
    for callsite in report.callsites() {
        let function = callsite["location"]["function"].as_str().unwrap_or_default();
        // The innermost function of the path; a closure in it is part of it.
        if let Some(segment) = function.rsplit("::").find(|segment| !segment.starts_with('{')) {
            *observed.entry(segment.to_owned()).or_default() += callsite["spawned"].as_u64().unwrap();
        }
    }
    Share::between(&expected, &observed)
}

fn met(truth: &Truth, report: &Report, functions: &Functions) -> Share {
    let mut expected = BTreeMap::new();
    for site in truth.sites() {
        let function = functions
            .at(site.spawned_at.unwrap())
            .expect("the twin names the victim's own code");
        *expected.entry(function.to_owned()).or_default() += site.counts.spawned;
    }
    let spawners: BTreeSet<String> = expected.keys().cloned().collect();
    let mut observed = BTreeMap::new();
    for stack in report.stacks() {
        // Spawning functions are nested in others: the innermost one counts.
        let frames = stack["frames"].as_array().unwrap();
        let image = &frames[0]["image"];
        let spawner = frames
            .iter()
            .filter(|frame| frame["image"] == *image)
            // What a frame other than the first tells is where it goes on: the call is before that.
            .filter_map(|frame| functions.at(frame["offset"].as_u64().unwrap() - 1))
            .find(|function| spawners.contains(*function));
        if let Some(spawner) = spawner {
            *observed.entry(spawner.to_owned()).or_default() += stack["spawned"].as_u64().unwrap();
        }
    }
    Share::between(&expected, &observed)
}

fn rooted(report: &Report) -> Share {
    let births = |stack: &serde_json::Value| stack["spawned"].as_u64().unwrap();
    let complete = |stack: &&serde_json::Value| stack["complete"] == true;
    Share {
        right: report.stacks().filter(complete).map(births).sum(),
        all: report.stacks().map(births).sum(),
    }
}

/// A program's functions, by the offset of their code in the file.
struct Functions(BTreeMap<u64, (u64, String)>);

impl Functions {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let file = object::File::parse(&*bytes).unwrap();
        let offset = |address: u64| {
            file.segments()
                .find(|segment| (segment.address()..segment.address() + segment.size()).contains(&address))
                .map(|segment| address - segment.address() + segment.file_range().0)
        };
        let symbols = file
            .symbols()
            .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0);
        Self(
            symbols
                .filter_map(|symbol| {
                    let start = offset(symbol.address())?;
                    Some((start, (start + symbol.size(), symbol.name().ok()?.to_owned())))
                })
                .collect(),
        )
    }

    fn at(&self, offset: u64) -> Option<&str> {
        let (_, (end, name)) = self.0.range(..=offset).next_back()?;
        (offset < *end).then_some(name)
    }
}
