//! tokio, in an image: its task types, where they are born and where they complete. No symbols are needed.
//!
//! In: an image. Out: the runtime's part of the plan, for as many versions as are linked into it. Everything that depends on
//! tokio's version is in `vtables` (the table of shapes) and in the constants at the top of `births` and `completions`, each with
//! its source.

mod births;
mod completions;
mod type_names;
mod version;
mod vtables;

use super::{
    image::Image,
    plan::{ProbeSite, TaskType},
    runtimes::{Finding, Planned},
};
use births::Birth;
use completions::{Completions, Reach};
use std::collections::{BTreeMap, BTreeSet};
use type_names::Naming;
use version::{Minors, Versions};
use vtables::{Claimed, Completion, SHAPES, Shape, Vtable};

/// Problems told one by one; more are summed up.
const PROBLEMS_MAX: usize = 32;

/// Looks for tokio in an image.
pub(super) fn find(image: &Image<'_>) -> Finding {
    let versions = version::find(image);
    let minors = versions.minors();
    let mut found = Found::default();
    let mut claimed = Claimed::default();
    for shape in &SHAPES {
        if !shape.is_sought(&minors) {
            continue;
        }
        // Tables that their integers don't prove count only where something completes: most programs have nothing that does, and
        // are done with here.
        if !shape.is_proven() && !found.complete(image, shape.completion) {
            continue;
        }
        let vtables = vtables::scan(image, shape, &claimed);
        if vtables.is_empty() {
            continue;
        }
        if !image.has_functions() {
            let reason = "its .eh_frame section is missing; link it without removing that section".to_owned();
            let version = versions.shown();
            return Finding::Unsupported { version, reason };
        }
        found.complete(image, shape.completion);
        let Some(completions) = found.completions.get_mut(&shape.completion) else {
            continue;
        };
        if shape.completion == Completion::Harness {
            let functions = |vtable: &Vtable| shape.completing().map(|index| vtable.functions[index]);
            let starts: Vec<u64> = vtables.iter().flat_map(functions).collect();
            completions.add_inlined(image, &starts);
        }
        let (vtables, incomplete) = completing(image, shape, vtables, completions);
        let births = births::find(image, shape, &vtables);
        let born: BTreeSet<u64> = births.iter().map(|birth| birth.vtable).collect();
        let is_born = |vtable: &Vtable| born.contains(&vtable.address);
        let vtables: Vec<Vtable> = vtables.into_iter().filter(is_born).collect();
        if vtables.is_empty() {
            continue;
        }
        claimed.add(shape, &vtables);
        found.problems.extend(incomplete.intersection(&born).map(|vtable| {
            format!(
                "Ends of the task type with vtable {vtable:#x} are not seen: no completion is reached from its code."
            )
        }));
        found.families.push((shape, vtables, births));
    }
    let ends = found
        .families
        .iter()
        .any(|(shape, ..)| found.has_ends(shape.completion));
    if found.families.is_empty() || !ends {
        let endless = |shape: &Shape| shape.covers(&minors) && !shape.is_proven() && !found.has_ends(shape.completion);
        let has_tasks = !found.families.is_empty() || SHAPES.iter().any(endless);
        return absent(&versions, &minors, has_tasks);
    }
    Finding::Planned(plan(image, &versions, found))
}

/// What was found so far.
#[derive(Default)]
struct Found<'a> {
    families: Vec<(&'a Shape, Vec<Vtable>, Vec<Birth>)>,
    completions: BTreeMap<Completion, Completions>,
    problems: Vec<String>,
}

impl Found<'_> {
    /// Looks for completions, where that was not done yet; says whether there are any.
    fn complete(&mut self, image: &Image<'_>, completion: Completion) -> bool {
        let found = || completions::find(image, completion);
        self.completions.entry(completion).or_insert_with(found);
        self.has_ends(completion)
    }

    fn has_ends(&self, completion: Completion) -> bool {
        self.completions
            .get(&completion)
            .is_some_and(|completions| !completions.sites.is_empty())
    }
}

/// The vtables whose functions lead to a completion, and of the rest those that are proven otherwise: their ends are not seen.
fn completing<'a>(
    image: &'a Image<'a>,
    shape: &Shape,
    vtables: Vec<Vtable>,
    completions: &'a Completions,
) -> (Vec<Vtable>, BTreeSet<u64>) {
    let mut reach = Reach::new(image, completions);
    let mut incomplete = BTreeSet::new();
    let kept = vtables.into_iter().filter(|vtable| {
        let completes = shape
            .completing()
            .into_iter()
            .any(|index| reach.completes(vtable.functions[index]));
        if !completes {
            incomplete.insert(vtable.address);
        }
        completes || shape.is_proven()
    });
    let kept = kept.collect();
    (kept, incomplete)
}

/// Why there is no plan: `has_tasks` where there are task types and no end of any.
fn absent(versions: &Versions, minors: &Minors, has_tasks: bool) -> Finding {
    let version = versions.shown();
    if version.is_none() && !has_tasks {
        return Finding::Absent;
    }
    let symbols_needed = |shape: &Shape| shape.completion == Completion::Harness && shape.covers(minors);
    let reason = if has_tasks {
        "nothing in it shows where tasks end; build it with optimisation, or keep its symbol table".to_owned()
    } else if SHAPES.iter().any(symbols_needed) {
        "with this version only symbols show where tasks end, and it has none for them; keep its symbol table"
            .to_owned()
    } else {
        let supported: Vec<String> = SHAPES.iter().rev().map(Shape::versions).collect();
        format!(
            "no task vtable of a known form is in it; supported are tokio {}",
            supported.join(", ")
        )
    };
    Finding::Unsupported { version, reason }
}

fn plan(image: &Image<'_>, versions: &Versions, mut found: Found<'_>) -> Planned {
    let mut planned = Planned {
        version: versions.shown(),
        problems: found.problems,
        ..Planned::default()
    };
    let mut ends = BTreeMap::new();
    let mut freeing = BTreeSet::new();
    for (shape, vtables, births) in found.families {
        if let Some(completions) = found.completions.remove(&shape.completion) {
            ends.extend(completions.sites.into_iter().map(|site| (site.address, site)));
        }
        if let Some(dealloc) = shape.dealloc {
            freeing.extend(vtables.iter().map(|vtable| vtable.functions[dealloc]));
        }
        let first = planned.task_types.len();
        let namings = type_names::find(image, shape, &vtables);
        let types = vtables.iter().zip(namings);
        planned
            .task_types
            .extend(types.map(|(vtable, naming)| task_type(shape, vtable, naming)));
        for (site, types) in by_site(&vtables, births, &mut planned.problems).into_values() {
            let task_type = match types.as_slice() {
                [only] => Some(first + *only),
                _ => None,
            };
            planned.sites.push(ProbeSite { task_type, ..site });
        }
    }
    planned
        .sites
        .sort_by_key(|site| (site.task_type.is_none(), site.task_type, site.address));
    planned.sites.extend(ends.into_values());
    planned.sites.extend(completions::freeing(image, &freeing));
    if !image.is_searched() {
        planned
            .problems
            .push("The code is too intricate to be searched to its end: some sites may be missing.".into());
    }
    let told = planned.problems.len();
    if told > PROBLEMS_MAX {
        planned.problems.truncate(PROBLEMS_MAX);
        planned
            .problems
            .push(format!("{} more problems are not listed.", told - PROBLEMS_MAX));
    }
    planned
}

/// Birth sites by address, each with the indices of its task types.
fn by_site(
    vtables: &[Vtable],
    births: Vec<Birth>,
    problems: &mut Vec<String>,
) -> BTreeMap<u64, (ProbeSite, Vec<usize>)> {
    let mut sites: BTreeMap<u64, (ProbeSite, Vec<usize>)> = BTreeMap::new();
    for birth in births {
        let Ok(index) = vtables.binary_search_by_key(&birth.vtable, |vtable| vtable.address) else {
            continue;
        };
        match birth.site {
            Ok(site) => {
                let types = &mut sites.entry(site.address).or_insert((site, Vec::new())).1;
                if !types.contains(&index) {
                    types.push(index);
                }
            }
            Err(reason) => problems.push(format!(
                "Births of the task type with vtable {:#x} are not seen: {reason}.",
                birth.vtable
            )),
        }
    }
    sites
}

fn task_type(shape: &Shape, vtable: &Vtable, naming: Naming) -> TaskType {
    TaskType {
        vtable: vtable.address,
        kind: naming.kind(vtable),
        names: naming.names,
        runtime_owned: naming.runtime_owned,
        vtable_offset: shape.vtable_offset as u32,
        trailer_offset: vtable.trailer_offset.map(|offset| offset as u32),
        scheduler_offset: vtable.scheduler_offset.map(|offset| offset as u32),
        id_offset: vtable.id_offset.map(|offset| offset as u32),
    }
}
