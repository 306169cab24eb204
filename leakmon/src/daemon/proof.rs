//! Whether a plan is right: what the first tasks of each stack show when they end.
//!
//! In: the proofs that the BPF programs send ([`Event::Proof`](crate::kernel::event::Event::Proof)), and the plans. Out: sites that
//! failed. A header was written long before its task ends, so there its vtable word must be a vtable of the plan, and its state
//! word must be what the end site stands for. A site fails where several tasks in a row are wrong and none was right: one hit in
//! the wrong moment proves nothing, and a site that was right once is right.

use crate::{kernel::event::Proof, targets::plan::ProbePlan};
use leakmon_ebpf::abi::{Condition, Cookie, Role};
use std::collections::BTreeMap;

/// Tasks of a site that must be wrong, one after the other.
const FAILURES_MAX: u32 = 3;
/// Sites that are remembered; beyond it, the sites of further images are not proven.
const SITES_MAX: usize = 1 << 16;

/// `RUNNING` and `COMPLETE` in the state word: tokio 1.0.3 to 1.54.1, `runtime/task/state.rs`.
const RUNNING: u8 = 1;
const COMPLETE: u8 = 2;

/// A site that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Its image and its index.
    pub(super) site: Cookie,
    /// A sentence for the report.
    pub(super) reason: String,
}

/// How each site has done so far.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    trials: BTreeMap<(u32, u32), Trial>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trial {
    Passed,
    Failed(u32),
}

impl Proofs {
    /// Takes one proof: the sites that have failed by it for good.
    pub(super) fn take(&mut self, proof: &Proof, plan: &ProbePlan) -> Vec<Failure> {
        let verdicts = [
            (
                proof.birth,
                born(proof, plan),
                "a task that it saw born has no task's header",
            ),
            (
                proof.end,
                ended(proof, plan),
                "a task that it saw end was not completing",
            ),
        ];
        let mut failures = Vec::new();
        for (site, right, what) in verdicts {
            if let Some(right) = right
                && self.note(site, right)
            {
                failures.push(Failure {
                    site,
                    reason: format!("Site {} was detached: {what}.", site.site()),
                });
            }
        }
        failures
    }

    /// Notes a trial; says whether the site has just failed for good.
    fn note(&mut self, site: Cookie, right: bool) -> bool {
        let key = (site.image(), site.site());
        if self.trials.len() >= SITES_MAX && !self.trials.contains_key(&key) {
            return false;
        }
        let trial = self.trials.entry(key).or_insert(Trial::Failed(0));
        match trial {
            _ if right => *trial = Trial::Passed,
            Trial::Failed(failures) => {
                *failures = failures.saturating_add(1);
                return *failures == FAILURES_MAX;
            }
            Trial::Passed => {}
        }
        false
    }
}

/// Whether the vtable is one of the plan's, and where the birth site has one type, that type's. `None` where it can't be known.
fn born(proof: &Proof, plan: &ProbePlan) -> Option<bool> {
    // Both must be in the image whose plan this is: their distance is the same wherever it is loaded.
    (proof.birth.image() == proof.end.image()).then_some(())?;
    let end = plan.sites.get(proof.end.site() as usize)?;
    let vtable = end.address.wrapping_add(proof.vtable_distance);
    let found = plan
        .task_types
        .binary_search_by_key(&vtable, |task_type| task_type.vtable);
    let birth = plan.sites.get(proof.birth.site() as usize)?;
    Some(found.is_ok_and(|found| birth.task_type.is_none_or(|own| own == found)))
}

/// Whether the state word is what it must be at the end site. `None` where that says nothing.
fn ended(proof: &Proof, plan: &ProbePlan) -> Option<bool> {
    let site = plan.sites.get(proof.end.site() as usize)?;
    match (site.role, site.condition) {
        // Behind the exchange.
        (Role::End, Condition::ZeroSet) => Some(proof.state & (RUNNING | COMPLETE) == COMPLETE),
        // Before it.
        (Role::End, _) => Some(proof.state & COMPLETE == 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::plan::{ImageId, ProbeSite, TaskType};
    use leakmon_ebpf::abi::Kind;

    fn plan() -> ProbePlan {
        let task_type = |vtable| TaskType {
            vtable,
            kind: Kind::Task,
            names: Vec::new(),
            runtime_owned: false,
            vtable_offset: 0x10,
            trailer_offset: None,
            scheduler_offset: None,
            id_offset: None,
        };
        let site = |role, condition, task_type| ProbeSite {
            role,
            file_offset: 0,
            address: 0x1000,
            register: 0,
            condition,
            task_type,
            bytes: vec![0x74, 1],
            instruction: String::new(),
            cheap: true,
        };
        ProbePlan {
            image: ImageId {
                device: 1,
                inode: 2,
                build_id: String::new(),
            },
            path: "/app".into(),
            entry_file_offset: None,
            runtime: "tokio",
            runtime_version: None,
            task_types: vec![task_type(0x9000), task_type(0x9100)],
            sites: vec![
                site(Role::Birth, Condition::ZeroClear, Some(0)),
                site(Role::Birth, Condition::ZeroClear, None),
                site(Role::End, Condition::ZeroSet, None),
                site(Role::End, Condition::Always, None),
            ],
            problems: Vec::new(),
        }
    }

    fn proof(birth: u32, end: u32, vtable: u64, state: u8) -> Proof {
        let cookie = |site| Cookie::new(0, Role::Birth, Condition::Always, Kind::Task, site, 5);
        Proof {
            birth: cookie(birth),
            end: cookie(end),
            vtable_distance: vtable.wrapping_sub(0x1000),
            state,
        }
    }

    #[test]
    fn a_header_is_judged_by_its_vtable_and_its_state() {
        for (birth, end, vtable, state, expected) in [
            (0, 2, 0x9000, COMPLETE | 0x40, (Some(true), Some(true))),
            // The other type's table, at a site of one type and at one of several.
            (0, 2, 0x9100, COMPLETE, (Some(false), Some(true))),
            (1, 2, 0x9100, COMPLETE, (Some(true), Some(true))),
            (1, 2, 0x9108, COMPLETE, (Some(false), Some(true))),
            (1, 2, 0, COMPLETE, (Some(false), Some(true))),
            (0, 2, 0x9000, RUNNING, (Some(true), Some(false))),
            (0, 2, 0x9000, RUNNING | COMPLETE, (Some(true), Some(false))),
            (0, 3, 0x9000, RUNNING, (Some(true), Some(true))),
            (0, 3, 0x9000, COMPLETE, (Some(true), Some(false))),
            (77, 2, 0x9000, COMPLETE, (None, Some(true))),
            (0, 77, 0x9000, COMPLETE, (None, None)),
        ] {
            let proof = proof(birth, end, vtable, state);
            assert_eq!((born(&proof, &plan()), ended(&proof, &plan())), expected, "{proof:?}");
        }
    }

    #[test]
    fn a_site_fails_once_by_several_wrong_tasks_in_a_row_unless_one_was_right() {
        let (plan, wrong, right) = (plan(), proof(0, 2, 0x5000, COMPLETE), proof(0, 2, 0x9000, COMPLETE));
        let mut proofs = Proofs::default();
        for _ in 1..FAILURES_MAX {
            assert_eq!(proofs.take(&wrong, &plan), []);
        }
        let failures = proofs.take(&wrong, &plan);
        assert_eq!(failures.len(), 1);
        assert_eq!(failures[0].site, wrong.birth);
        assert!(failures[0].reason.contains("Site 0 was detached"), "{failures:?}");
        assert_eq!(proofs.take(&wrong, &plan), []);

        let mut proofs = Proofs::default();
        assert_eq!(proofs.take(&right, &plan), []);
        for _ in 0..2 * FAILURES_MAX {
            assert_eq!(proofs.take(&wrong, &plan), []);
        }
    }

    #[test]
    fn sites_are_remembered_up_to_a_bound() {
        let mut proofs = Proofs::default();
        for site in 0..SITES_MAX as u32 + 3 {
            proofs.note(
                Cookie::new(0, Role::Birth, Condition::Always, Kind::Task, site, 0),
                true,
            );
        }
        assert_eq!(proofs.trials.len(), SITES_MAX);
    }
}
