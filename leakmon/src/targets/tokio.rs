//! tokio, in an image: its task types, where they are born and where they complete. No symbols are needed.
//!
//! In: an image. Out: the runtime's part of the plan. Everything that depends on tokio's version is in `vtables` (the table of
//! shapes) and in the constants at the top of `births` and `completions`, each with its source.

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
use std::collections::{BTreeMap, BTreeSet};
use type_names::Naming;
use vtables::{SHAPES, Shape, Vtable};

/// Problems told one by one; more are summed up.
const PROBLEMS_MAX: usize = 32;

/// Looks for tokio in an image.
pub(super) fn find(image: &Image<'_>) -> Finding {
    for shape in &SHAPES {
        let vtables = vtables::scan(image, shape);
        if vtables.is_empty() {
            continue;
        }
        if !image.has_functions() {
            let reason = "its .eh_frame section is missing; link it without removing that section".to_owned();
            return Finding::Unsupported {
                version: version::find(image),
                reason,
            };
        }
        let births = births::find(image, shape, &vtables);
        let born: BTreeSet<u64> = births.iter().map(|birth| birth.vtable).collect();
        let vtables: Vec<Vtable> = vtables
            .into_iter()
            .filter(|vtable| born.contains(&vtable.address))
            .collect();
        if vtables.is_empty() {
            continue;
        }
        return Finding::Planned(plan(image, shape, &vtables, births));
    }
    absent(image)
}

fn absent(image: &Image<'_>) -> Finding {
    let Some(version) = version::find(image) else {
        return Finding::Absent;
    };
    let supported = SHAPES.map(|shape| shape.versions).join(", ");
    let reason = if image.position_independent {
        format!("no task vtable of a known form is in it; supported are tokio {supported}")
    } else {
        "it is not position-independent; build it without `-C relocation-model=static`".to_owned()
    };
    Finding::Unsupported {
        version: Some(version),
        reason,
    }
}

fn plan(image: &Image<'_>, shape: &Shape, vtables: &[Vtable], births: Vec<Birth>) -> Planned {
    let mut planned = Planned {
        version: version::find(image),
        ..Planned::default()
    };
    let namings = type_names::find(image, shape, vtables);
    planned.task_types = vtables
        .iter()
        .zip(namings)
        .map(|(vtable, naming)| task_type(vtable, naming))
        .collect();
    for (site, types) in by_site(vtables, births, &mut planned.problems).into_values() {
        let task_type = match types.as_slice() {
            [only] => Some(*only),
            _ => None,
        };
        planned.sites.push(ProbeSite { task_type, ..site });
    }
    planned
        .sites
        .sort_by_key(|site| (site.task_type.is_none(), site.task_type, site.address));
    let ends = completions::find(image);
    if ends.is_empty() {
        planned.problems.push(
            "No completion site was found: ended tasks are not seen. Build without stripping, or with optimisation."
                .into(),
        );
    }
    planned.sites.extend(ends);
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

fn task_type(vtable: &Vtable, naming: Naming) -> TaskType {
    TaskType {
        vtable: vtable.address,
        kind: naming.kind(vtable),
        names: naming.names,
        runtime_owned: naming.runtime_owned,
        trailer_offset: vtable.trailer_offset as u32,
        scheduler_offset: vtable.scheduler_offset as u32,
        id_offset: vtable.id_offset as u32,
    }
}
