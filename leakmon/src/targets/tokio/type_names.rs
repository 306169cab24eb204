//! What a task type is called: the future's type, read from symbols near the vtable's functions.
//!
//! In: an image with symbols, and its vtables. Out: for each vtable the names of its future, several where the linker merged
//! identical code, none in a stripped image. Nothing depends on a name but what a person reads, and [`Kind::Local`].
//!
//! Per type, tokio's functions are inlined into one another differently in each profile, but the drop glue of `Cell<T, S>` or
//! `Stage<T>` (`runtime/task/core.rs`) is nearly always left, and its symbol spells the type out.

use super::super::{code::Function, image::Image};
use super::vtables::{Shape, Vtable};
use leakmon_ebpf::abi::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// Calls from a vtable's function to a symbol that names the type: 2 in release, 3 with `opt-level = "z"`, 4 in dev.
const DEPTH_MAX: usize = 4;
/// Calls from `poll` to the future's own code.
const POLL_DEPTH_MAX: usize = 4;
/// Functions looked at for one vtable function.
const FUNCTIONS_MAX: usize = 128;
/// Functions remembered for one image.
const REMEMBERED_MAX: usize = 1 << 18;
/// Names kept for one type.
const NAMES_MAX: usize = 64;
/// Longest name, in bytes: what is longer is cut.
const NAME_BYTES_MAX: usize = 4096;
/// Longest mangled symbol that is demangled.
const SYMBOL_BYTES_MAX: usize = 1 << 15;

/// Calls from `schedule` to a function of the scheduler.
const SCHEDULE_DEPTH_MAX: usize = 3;
/// A future is spawned on the `current_thread` and the `multi_thread` scheduler: what depends on the future only is shared.
const SCHEDULERS_OF_A_FUTURE: usize = 2;
/// Stands for the types of which merging left no name.
const SAME_CODE: &str = "a type with the same code";

/// Generic types whose first argument is the future; the most telling first.
const CARRIERS: [&str; 6] = [
    "tokio::runtime::task::core::Cell<",
    "tokio::runtime::task::core::Stage<",
    "tokio::runtime::task::core::CoreStage<",
    "tokio::runtime::task::core::Core<",
    "tokio::runtime::task::harness::Harness<",
    "tokio::runtime::task::raw::poll::<",
];
/// Index of the one that depends on the scheduler too.
const CELL: usize = 0;
/// Around the closure of `spawn_blocking` (`runtime/blocking/task.rs`).
const BLOCKING_WRAPPER: &str = "tokio::runtime::blocking::task::BlockingTask<";
/// Where the schedulers' code is (`task/local.rs`, `runtime/scheduler`, `runtime/blocking`).
const SCHEDULERS: [&str; 4] = [
    "tokio::task::local::",
    "tokio::runtime::scheduler::multi_thread",
    "tokio::runtime::scheduler::current_thread",
    "tokio::runtime::blocking::",
];
/// Index of `LocalSet`'s.
const LOCAL: usize = 0;
/// The worker threads' tasks (`runtime/scheduler/multi_thread/worker.rs`).
const RUNTIME_PREFIX: &str = "tokio::runtime::";
/// Crates whose closures are not the user's future.
const LIBRARIES: [&str; 5] = ["core::", "std::", "alloc::", "tokio::", "<"];

/// What the symbols say of one task type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Naming {
    /// The future's type; see [`super::super::plan::TaskType::names`].
    pub(super) names: Vec<String>,
    /// Whether the scheduler is a `LocalSet`.
    local: bool,
    /// Whether it is the blocking pool.
    blocking: bool,
    /// Whether the runtime itself spawns it.
    pub(super) runtime_owned: bool,
}

impl Naming {
    /// The kind, as the symbols correct what the vtable says. Where neither says it, it is a task.
    pub(super) fn kind(&self, vtable: &Vtable) -> Kind {
        let unsaid = if self.blocking { Kind::Blocking } else { Kind::Task };
        match self.local {
            true => Kind::Local,
            false => vtable.kind().unwrap_or(unsaid),
        }
    }
}

/// A symbol's word: the future that it names, and the address of the function that has the symbol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    future: String,
    /// Whether it is what `spawn_blocking` wraps a closure in.
    blocking: bool,
    source: u64,
    /// Vtables that share the source without any merging: one a scheduler, or one alone where the symbol spells that out too.
    holders_max: usize,
}

/// All that is said of one vtable.
#[derive(Debug, Default)]
struct Evidence {
    /// By symbols that spell out the task's types.
    claims: BTreeSet<Claim>,
    /// By the code that `poll` runs.
    polled: BTreeSet<Claim>,
    local: bool,
}

/// Names all vtables.
pub(super) fn find(image: &Image<'_>, shape: &Shape, vtables: &[Vtable]) -> Vec<Naming> {
    if image.symbols.is_empty() {
        return vec![Naming::default(); vtables.len()];
    }
    let mut search = Search {
        image,
        known: BTreeMap::new(),
    };
    let evidence: Vec<Evidence> = vtables.iter().map(|vtable| search.evidence(shape, vtable)).collect();
    let mut holders: BTreeMap<u64, usize> = BTreeMap::new();
    for one in &evidence {
        let sources: BTreeSet<u64> = one.claims.iter().chain(&one.polled).map(|claim| claim.source).collect();
        for source in sources {
            *holders.entry(source).or_default() += 1;
        }
    }
    let held = |claim: &Claim| holders.get(&claim.source).copied().unwrap_or_default();
    evidence.iter().map(|one| naming(one, &held)).collect()
}

/// What is known of a function.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Functions that it names.
    callees: Vec<u64>,
    claims: Vec<Claim>,
    /// Futures whose own code it is.
    polled: Vec<Claim>,
    /// The schedulers whose names are in its symbols: indices in [`SCHEDULERS`].
    schedulers: Vec<usize>,
}

struct Search<'a> {
    image: &'a Image<'a>,
    known: BTreeMap<u64, Known>,
}

impl Search<'_> {
    fn evidence(&mut self, shape: &Shape, vtable: &Vtable) -> Evidence {
        let mut evidence = Evidence::default();
        for function in shape.naming.iter().filter_map(|index| vtable.functions.get(*index)) {
            evidence
                .claims
                .extend(self.nearest(*function, DEPTH_MAX, |known| known.claims.clone()));
        }
        if let Some(poll) = vtable.functions.get(shape.poll) {
            evidence.polled = self.nearest(*poll, POLL_DEPTH_MAX, |known| known.polled.clone());
        }
        if let Some(schedule) = shape.schedule.and_then(|index| vtable.functions.get(index)) {
            let schedulers = self.nearest(*schedule, SCHEDULE_DEPTH_MAX, |known| known.schedulers.clone());
            evidence.local = schedulers == BTreeSet::from([LOCAL]);
        }
        evidence
    }

    /// What `of` finds in the fewest calls from `start`: everything found after that many.
    fn nearest<T: Ord>(&mut self, start: u64, depth: usize, of: impl Fn(&Known) -> Vec<T>) -> BTreeSet<T> {
        let mut seen = BTreeSet::from([start]);
        let mut level = vec![start];
        for _ in 0..=depth {
            let mut found = BTreeSet::new();
            let mut next = Vec::new();
            for address in level {
                if !self.image.pay(1) {
                    return found;
                }
                let known = self.known(address);
                found.extend(of(known));
                for callee in &known.callees {
                    if seen.len() < FUNCTIONS_MAX && seen.insert(*callee) {
                        next.push(*callee);
                    }
                }
            }
            if !found.is_empty() {
                return found;
            }
            level = next;
        }
        BTreeSet::new()
    }

    fn known(&mut self, address: u64) -> &Known {
        if self.known.len() >= REMEMBERED_MAX {
            self.known.clear();
        }
        let image = self.image;
        self.known.entry(address).or_insert_with(|| look(image, address))
    }
}

fn look(image: &Image<'_>, address: u64) -> Known {
    let mut known = Known::default();
    for symbol in image.symbols_at(address).take(NAMES_MAX) {
        let Some(name) = demangle(symbol) else { continue };
        let source = address;
        let holders_max = if name.contains(CARRIERS[CELL]) {
            1
        } else {
            SCHEDULERS_OF_A_FUTURE
        };
        let blocking = name.contains(BLOCKING_WRAPPER);
        known.claims.extend(future(&name).map(|future| Claim {
            future,
            blocking,
            source,
            holders_max,
        }));
        let holders_max = SCHEDULERS_OF_A_FUTURE;
        known.polled.extend(polled_future(&name).map(|future| Claim {
            future,
            blocking,
            source,
            holders_max,
        }));
        known
            .schedulers
            .extend((0..SCHEDULERS.len()).filter(|index| name.contains(SCHEDULERS[*index])));
    }
    if let Some(function) = Function::around(image, address) {
        known.callees = function.named(image);
    }
    known
}

/// Makes a type's names of what is said of it. `held` tells how many vtables share a claim's source.
fn naming(evidence: &Evidence, held: &dyn Fn(&Claim) -> usize) -> Naming {
    let futures = |claims: &BTreeSet<Claim>, sure: bool| -> BTreeSet<String> {
        let chosen = claims.iter().filter(|claim| !sure || held(claim) <= claim.holders_max);
        chosen.map(|claim| claim.future.clone()).collect()
    };
    let mut names = futures(&evidence.claims, true);
    let merged = names.is_empty();
    if merged {
        names = futures(&evidence.claims, false);
    }
    // What `poll` runs decides among several.
    let polled = futures(&evidence.polled, true);
    let own = names
        .iter()
        .filter(|name| polled.contains(*name) || polled.contains(&without_generics(name)));
    let own: BTreeSet<String> = own.cloned().collect();
    let runtime_owned = !names.is_empty() && names.iter().all(|name| name.starts_with(RUNTIME_PREFIX));
    if !own.is_empty() {
        names = own;
    } else if merged && names.len() == 1 && !runtime_owned {
        names.insert(SAME_CODE.to_owned());
    }
    Naming {
        local: evidence.local,
        blocking: !evidence.claims.is_empty() && evidence.claims.iter().all(|claim| claim.blocking),
        runtime_owned,
        names: names.into_iter().take(NAMES_MAX).collect(),
    }
}

/// The symbol in Rust's words, without hash and `.llvm.` suffix. `None` for what is not Rust's.
fn demangle(symbol: &[u8]) -> Option<String> {
    let symbol = std::str::from_utf8(symbol)
        .ok()
        .filter(|symbol| symbol.len() <= SYMBOL_BYTES_MAX)?;
    let demangled = rustc_demangle::try_demangle(symbol).ok()?;
    Some(format!("{demangled:#}"))
}

/// The future that a demangled symbol names as a task's.
fn future(name: &str) -> Option<String> {
    CARRIERS.iter().find_map(|carrier| {
        let mut future = argument(&name[name.find(carrier)? + carrier.len()..])?;
        if let Some(inner) = future.strip_prefix(BLOCKING_WRAPPER) {
            future = argument(inner)?;
        }
        (!has_parameter(future)).then(|| cut(future.to_owned()))
    })
}

/// Whether a type has a parameter for an argument, as the `T` of `Cell<T,S>::new`: a legacy symbol of a generic function does not
/// tell its arguments.
fn has_parameter(name: &str) -> bool {
    name.split(|character: char| !(character.is_alphanumeric() || "_:".contains(character)))
        .any(|word| word.len() == 1 && word.starts_with(|character: char| character.is_ascii_uppercase()))
}

/// The future of which a demangled symbol is the `poll`: an `async` block of user code, or an implementation of `Future`.
fn polled_future(name: &str) -> Option<String> {
    let user = !LIBRARIES.iter().any(|library| name.starts_with(library));
    if user && (name.ends_with("{{closure}}") || name.ends_with("{closure#0}")) {
        return Some(cut(name.to_owned()));
    }
    let (future, rest) = name
        .strip_prefix('<')?
        .split_once(" as core::future::future::Future>")?;
    (rest == "::poll" && !has_parameter(future)).then(|| cut(future.to_owned()))
}

/// `app::run::{{closure}}` of `app::run<u8>::{{closure}}`: a legacy symbol of a generic function has no arguments.
fn without_generics(name: &str) -> String {
    let mut depth = 0_usize;
    let mut kept = String::with_capacity(name.len());
    for character in name.chars() {
        match character {
            '<' => depth += 1,
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(character),
            _ => {}
        }
    }
    kept
}

/// The first of some generic arguments.
fn argument(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (index, character) in text.char_indices() {
        match character {
            '<' | '(' | '[' | '{' => depth += 1,
            // `->` of a function type closes nothing.
            '>' if before == '-' => {}
            ',' | '>' if depth == 0 => return Some(&text[..index]),
            '>' | ')' | ']' | '}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        before = character;
    }
    None
}

fn cut(mut name: String) -> String {
    if name.len() > NAME_BYTES_MAX {
        let end = (0..=NAME_BYTES_MAX)
            .rev()
            .find(|end| name.is_char_boundary(*end))
            .unwrap_or(0);
        name.truncate(end);
    }
    name
}

#[cfg(test)]
mod tests;
