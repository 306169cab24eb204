//! What a task type is called: the future's type, read from symbols near the vtable's functions.
//!
//! In: an image with symbols, and its vtables. Out: for each vtable the names of its future, several where the linker merged
//! identical code, none in a stripped image. Nothing depends on a name but what a person reads, and [`Kind::Local`].
//!
//! Per type, tokio's functions are inlined into one another differently in each profile, but the drop glue of `Cell<T, S>` or
//! `Stage<T>` (`runtime/task/core.rs`) is nearly always left, and its symbol spells the type out.

use super::super::{
    code::{self, Function},
    image::Image,
};
use super::vtables::{Shape, Vtable};
use leakmon_ebpf::abi::Kind;
use std::collections::{BTreeMap, BTreeSet};

/// Calls from a vtable's function to a symbol that names the type: 2 in release, 3 with `opt-level = "z"`, 4 in dev.
const DEPTH_MAX: usize = 4;
/// Calls from `poll` to the future's own code.
const POLL_DEPTH_MAX: usize = 5;
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

/// Generic types whose first argument is the future, and second the scheduler; best evidence first.
const CARRIERS: [(&str, bool); 6] = [
    ("tokio::runtime::task::core::Cell<", true),
    ("tokio::runtime::task::core::Stage<", false),
    ("tokio::runtime::task::core::CoreStage<", false),
    ("tokio::runtime::task::core::Core<", true),
    ("tokio::runtime::task::harness::Harness<", true),
    ("tokio::runtime::task::raw::poll::<", true),
];
/// Around the closure of `spawn_blocking` (`runtime/blocking/task.rs`).
const BLOCKING_WRAPPER: &str = "tokio::runtime::blocking::task::BlockingTask<";
/// Scheduler of `LocalSet` (`task/local.rs`).
const LOCAL_SCHEDULER: &str = "tokio::task::local::Shared";
/// The worker threads' tasks (`runtime/scheduler/multi_thread/worker.rs`).
const RUNTIME_PREFIX: &str = "tokio::runtime::";
/// Crates whose closures are not the user's future.
const LIBRARIES: [&str; 5] = ["core::", "std::", "alloc::", "tokio::", "<"];

/// What the symbols say of one task type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Naming {
    /// The future's type; see [`super::super::plan::TaskType::names`].
    pub(super) names: Vec<String>,
    /// How many task types these names may stand for.
    pub(super) merged: usize,
    /// Whether the scheduler is a `LocalSet`.
    pub(super) local: bool,
    /// Whether the runtime itself spawns it.
    pub(super) runtime_owned: bool,
}

impl Naming {
    /// The kind, as the symbols correct what the vtable says.
    pub(super) fn kind(&self, vtable: &Vtable) -> Kind {
        if self.local { Kind::Local } else { vtable.kind() }
    }
}

/// Names all vtables.
pub(super) fn find(image: &Image<'_>, shape: &Shape, vtables: &[Vtable]) -> Vec<Naming> {
    if image.symbols.is_empty() {
        let unnamed = Naming {
            merged: 1,
            ..Naming::default()
        };
        return vec![unnamed; vtables.len()];
    }
    let mut search = Search {
        image,
        known: BTreeMap::new(),
    };
    let claims: Vec<BTreeSet<Claim>> = vtables.iter().map(|vtable| search.claims(shape, vtable)).collect();
    let mut holders: BTreeMap<&BTreeSet<Claim>, usize> = BTreeMap::new();
    for claim in &claims {
        *holders.entry(claim).or_default() += 1;
    }
    let namings = vtables.iter().zip(&claims).map(|(vtable, claims)| {
        // Merged code: what `poll` runs is the future's own.
        let unsure = claims.len() != 1 || holders.get(claims).is_some_and(|holders| *holders > 1);
        let own = if unsure { search.polled(vtable) } else { BTreeSet::new() };
        naming(claims, &own)
    });
    let namings: Vec<Naming> = namings.collect();
    let merged: Vec<usize> = (0..vtables.len())
        .map(|index| merged(index, vtables, &claims, &namings))
        .collect();
    namings
        .into_iter()
        .zip(merged)
        .map(|(naming, merged)| Naming {
            merged,
            // A symbol that stands for several types proves nothing of one of them.
            local: naming.local && merged == 1,
            ..naming
        })
        .collect()
}

/// Schedulers for which `tokio::spawn` instantiates each future: the multi-thread and the current-thread one
/// (`runtime/handle.rs`). Where a symbol does not tell the scheduler, that many vtables may bear one future's name.
const SCHEDULERS: usize = 2;

/// How many vtables have the same evidence for their names as this one, so that which is which can't be known.
fn merged(index: usize, vtables: &[Vtable], claims: &[BTreeSet<Claim>], namings: &[Naming]) -> usize {
    let poll = |index: usize| vtables[index].functions.first();
    let same: Vec<usize> = (0..vtables.len())
        .filter(|other| {
            !claims[index].is_empty()
                && claims[*other] == claims[index]
                && namings[*other].names == namings[index].names
        })
        .collect();
    let schedulers_told = claims[index].iter().all(|claim| claim.scheduler.is_some());
    let one_function = same.iter().filter(|other| poll(**other) == poll(index)).count() > 1;
    if schedulers_told || one_function || same.len() > SCHEDULERS {
        same.len().max(1)
    } else {
        1
    }
}

/// A symbol's word on a task type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    future: String,
    scheduler: Option<String>,
}

/// What is known of a function.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Functions that it names.
    callees: Vec<u64>,
    claims: Vec<Claim>,
    /// Its names, where they are those of user code.
    closures: Vec<String>,
}

struct Search<'a> {
    image: &'a Image<'a>,
    known: BTreeMap<u64, Known>,
}

impl Search<'_> {
    /// The claims nearest to the vtable's functions.
    fn claims(&mut self, shape: &Shape, vtable: &Vtable) -> BTreeSet<Claim> {
        for function in shape.naming.iter().filter_map(|index| vtable.functions.get(*index)) {
            let claims = self.nearest(*function, DEPTH_MAX, |known| known.claims.clone());
            if !claims.is_empty() {
                return claims;
            }
        }
        BTreeSet::new()
    }

    /// The user's closures nearest to `poll`.
    fn polled(&mut self, vtable: &Vtable) -> BTreeSet<String> {
        let Some(poll) = vtable.functions.first() else {
            return BTreeSet::new();
        };
        self.nearest(*poll, POLL_DEPTH_MAX, |known| known.closures.clone())
    }

    /// What `of` finds in the fewest calls from `start`: everything found after that many.
    fn nearest<T: Ord>(&mut self, start: u64, depth: usize, of: impl Fn(&Known) -> Vec<T>) -> BTreeSet<T> {
        let mut seen = BTreeSet::from([start]);
        let mut level = vec![start];
        for _ in 0..=depth {
            let mut found = BTreeSet::new();
            let mut next = Vec::new();
            for address in level {
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
        known.claims.extend(claim(&name));
        if name.ends_with("{{closure}}") && !LIBRARIES.iter().any(|library| name.starts_with(library)) {
            known.closures.push(cut(name));
        }
    }
    if let Some(function) = Function::around(image, address) {
        known.callees = callees(image, &function, address);
    }
    known
}

/// Functions whose address the code names, by calling them or otherwise.
fn callees(image: &Image<'_>, function: &Function, start: u64) -> Vec<u64> {
    let mut found = BTreeSet::new();
    for instruction in &function.instructions {
        let target = code::branch_target(instruction).or_else(|| {
            let address = instruction
                .is_ip_rel_memory_operand()
                .then(|| instruction.ip_rel_memory_address())?;
            image.relocated_word(address).or(Some(address))
        });
        let other = target.and_then(|target| image.function(target).filter(|function| function.start == target));
        if let Some(other) = other.filter(|other| other.start != start) {
            found.insert(other.start);
        }
    }
    found.into_iter().collect()
}

fn naming(claims: &BTreeSet<Claim>, own: &BTreeSet<String>) -> Naming {
    let mut names: BTreeSet<String> = claims.iter().map(|claim| claim.future.clone()).collect();
    let polled: BTreeSet<String> = names.iter().filter(|name| own.contains(*name)).cloned().collect();
    if !polled.is_empty() {
        names = polled;
    } else if names.len() <= 1 && own.len() == 1 && !own.is_subset(&names) {
        // The only name belongs to another type whose drop glue is the same, or there is none.
        names.clone_from(own);
    }
    let schedulers: Vec<&String> = claims.iter().filter_map(|claim| claim.scheduler.as_ref()).collect();
    Naming {
        merged: 1,
        local: !schedulers.is_empty() && schedulers.iter().all(|scheduler| scheduler.contains(LOCAL_SCHEDULER)),
        runtime_owned: !names.is_empty() && names.iter().all(|name| name.starts_with(RUNTIME_PREFIX)),
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

/// What a demangled symbol says of a task type.
fn claim(name: &str) -> Option<Claim> {
    CARRIERS.iter().find_map(|(carrier, with_scheduler)| {
        let arguments = &name[name.find(carrier)? + carrier.len()..];
        let (future, rest) = argument(arguments)?;
        let scheduler = with_scheduler
            .then(|| argument(rest.strip_prefix(',')?.trim_start()))
            .flatten();
        let mut future = future;
        if let Some(inner) = future.strip_prefix(BLOCKING_WRAPPER) {
            future = argument(inner)?.0;
        }
        // `Cell<T,S>::new`: a legacy symbol of a generic function does not tell its arguments.
        if future.len() == 1 {
            return None;
        }
        Some(Claim {
            future: cut(future.to_owned()),
            scheduler: scheduler.map(|(scheduler, _)| cut(scheduler.to_owned())),
        })
    })
}

/// The first generic argument, and what follows it.
fn argument(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0_usize;
    let mut before = ' ';
    for (index, character) in text.char_indices() {
        match character {
            '<' | '(' | '[' | '{' => depth += 1,
            // `->` of a function type closes nothing.
            '>' if before == '-' => {}
            ',' | '>' if depth == 0 => return Some((&text[..index], &text[index..])),
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
