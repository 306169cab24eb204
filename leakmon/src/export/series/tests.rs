//! The choice of series against a naive model: no counter falls, sums stay right.

use super::*;
use crate::export::filter::KINDS;
use crate::export::samples;
use proptest::prelude::*;

/// A callsite as the model knows it: counters that only rise.
#[derive(Clone, Debug, Default)]
struct Model {
    spawned: u64,
    ended: u64,
    verdict: usize,
}

/// An id whose first characters, those in the label, tell callsites apart.
fn id(number: usize) -> String {
    format!("{number:012x}0000")
}

/// Tgid, whether it has exited, callsites by number.
type Process = (u32, bool, Vec<(usize, Model)>);

fn report_of(processes: &[Process]) -> Report {
    let mut report = samples::empty();
    for (tgid, exited, callsites) in processes {
        let mut target = samples::target(*tgid, "/usr/bin/app");
        target.exited = *exited;
        for (number, model) in callsites {
            let mut callsite = samples::callsite(&target, &id(*number), KINDS[number % KINDS.len()]);
            callsite.spawned = model.spawned;
            callsite.ended = model.ended;
            callsite.live = model.spawned - model.ended;
            callsite.verdict = [Verdict::Unknown, Verdict::Steady, Verdict::Suspect, Verdict::Leak][model.verdict];
            report.callsites.push(callsite);
        }
        report.targets.push(target);
    }
    report
}

fn sum(table: &SeriesTable, tgid: u32, kind: &str) -> (u64, u64, u64) {
    table
        .series
        .iter()
        .filter(|series| series.labels.tgid == tgid && series.labels.kind == kind)
        .fold((0, 0, 0), |(live, spawned, ended), series| {
            let values = &series.values;
            (live + values.live, spawned + values.spawned, ended + values.ended)
        })
}

fn own_count(table: &SeriesTable, tgid: u32) -> usize {
    table
        .series
        .iter()
        .filter(|series| series.labels.tgid == tgid && series.labels.callsite != OTHER)
        .count()
}

/// One change between two reports: process, callsite, births, deaths in percent of what lives, verdict.
type Change = (usize, usize, u64, u64, usize);

/// The invariants after each report, against the plain counts of the model.
fn check(slots: usize, process_slots: usize, steps: &[(Vec<Change>, Option<usize>)]) -> Result<(), TestCaseError> {
    const PROCESSES: usize = 3;
    let mut book = SeriesBook::new(Limits {
        callsites: slots,
        processes: process_slots,
    });
    let mut model: Vec<BTreeMap<usize, Model>> = vec![BTreeMap::new(); PROCESSES];
    let mut exited = [false; PROCESSES];
    let mut before: HashMap<Arc<Labels>, Values> = HashMap::new();
    for (changes, exits) in steps {
        for &(process, callsite, births, deaths, verdict) in changes {
            let entry = model[process].entry(callsite).or_default();
            entry.spawned += births;
            entry.ended += (entry.spawned - entry.ended) * deaths / 100;
            entry.verdict = verdict;
        }
        if let Some(process) = exits {
            exited[*process] = true;
        }
        let report = report_of(&std::array::from_fn::<_, PROCESSES, _>(|process| {
            let callsites = model[process]
                .iter()
                .map(|(number, model)| (*number, model.clone()))
                .collect();
            (process as u32 + 1, exited[process], callsites)
        }));
        let table = book.observe(&report);
        let mut now = HashMap::new();
        for series in &table.series {
            let twice = now.insert(Arc::clone(&series.labels), series.values);
            prop_assert!(twice.is_none(), "{:?} twice", series.labels);
        }
        for (labels, was) in &before {
            if !exited[labels.tgid as usize - 1] {
                let is = now.get(labels);
                prop_assert!(is.is_some(), "{labels:?} lost its series");
                let is = is.unwrap();
                prop_assert!(is.spawned >= was.spawned && is.ended >= was.ended, "{labels:?} fell");
            }
        }
        let shown: BTreeSet<u32> = table.series.iter().map(|series| series.labels.tgid).collect();
        let wanting = (0..PROCESSES)
            .filter(|&process| !exited[process] && !model[process].is_empty())
            .count();
        prop_assert_eq!(shown.len(), wanting.min(process_slots));
        for tgid in shown {
            prop_assert!(!exited[tgid as usize - 1]);
            prop_assert!(own_count(&table, tgid) <= slots);
            for kind in KINDS {
                let of_kind = || report.callsites.iter().filter(|c| c.pid == tgid && c.kind == kind);
                let truth = (
                    of_kind().map(|c| c.live).sum::<u64>(),
                    of_kind().map(|c| c.spawned).sum::<u64>(),
                    of_kind().map(|c| c.ended).sum::<u64>(),
                );
                prop_assert_eq!(sum(&table, tgid, kind), truth, "{} {}", tgid, kind);
            }
        }
        before = now;
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_counter_falls_and_sums_stay_true(
        slots in 0_usize..10,
        process_slots in 1_usize..4,
        steps in prop::collection::vec(
            (
                prop::collection::vec((0_usize..3, 0_usize..16, 0_u64..50, 0_u64..=100, 0_usize..4), 0..12),
                prop::option::weighted(0.05, 0_usize..3),
            ),
            1..12,
        ),
    ) {
        check(slots, process_slots, &steps)?;
    }
}

/// `count` callsites of kind task, each with the given live count.
fn tasks(count: usize, live: u64) -> Vec<(usize, Model)> {
    (0..count)
        .map(|number| {
            (
                number * KINDS.len(),
                Model {
                    spawned: live,
                    ended: 0,
                    verdict: 0,
                },
            )
        })
        .collect()
}

#[test]
fn the_last_quarter_of_the_slots_waits_for_those_that_matter() {
    let mut book = SeriesBook::new(Limits {
        callsites: 40,
        processes: 1,
    });
    let mut callsites = tasks(100, 5);
    let table = book.observe(&report_of(&[(1, false, callsites.clone())]));
    // 30 open slots; none of those that were left out ranks among the ten highest.
    assert_eq!(own_count(&table, 1), 30);
    assert_eq!(sum(&table, 1, "task"), (500, 500, 0));

    callsites[70].1.spawned = 900;
    callsites[80].1.verdict = 2;
    let table = book.observe(&report_of(&[(1, false, callsites.clone())]));
    assert_eq!(own_count(&table, 1), 32);
    let label = short_id(&id(70 * KINDS.len()));
    let late = table
        .series
        .iter()
        .find(|series| series.labels.callsite == label)
        .unwrap()
        .values;
    assert_eq!(
        (late.live, late.spawned),
        (900, 0),
        "what it counted before stays in `other`"
    );
    assert_eq!(sum(&table, 1, "task"), (1_395, 1_395, 0));

    for (_, model) in &mut callsites {
        model.verdict = 3;
    }
    let table = book.observe(&report_of(&[(1, false, callsites)]));
    assert_eq!(own_count(&table, 1), 40, "the bound");
}

#[test]
fn a_process_beyond_the_bound_is_counted_once_and_let_in_when_there_is_room() {
    let mut book = SeriesBook::new(Limits {
        callsites: 4,
        processes: 2,
    });
    let processes = |first_exited: bool| {
        [
            (1, first_exited, tasks(1, 3)),
            (2, false, tasks(1, 3)),
            (3, false, tasks(1, 3)),
        ]
    };
    for _ in 0..3 {
        let table = book.observe(&report_of(&processes(false)));
        assert_eq!(table.refused_processes, 1);
        assert_eq!(sum(&table, 3, "task"), (0, 0, 0));
    }
    let table = book.observe(&report_of(&processes(true)));
    assert_eq!(table.refused_processes, 1);
    assert_eq!(sum(&table, 1, "task"), (0, 0, 0));
    assert_eq!(sum(&table, 3, "task"), (3, 3, 0));
}

#[test]
fn callsites_of_one_id_are_one_series() {
    let mut report = report_of(&[(1, false, tasks(1, 3))]);
    let mut twin = report.callsites[0].clone();
    twin.task_type = Some("app::another".to_owned());
    twin.oldest_seconds = Some(99.0);
    twin.verdict = Verdict::Leak;
    report.callsites.push(twin);
    let table = SeriesBook::new(Limits::default()).observe(&report);
    let own = &table.series[0];
    assert_eq!((own.values.live, own.values.spawned, own.values.leak), (6, 6, true));
    assert_eq!(own.values.oldest_seconds, Some(99.0));
    assert_eq!(table.series.len(), 2);
}

#[test]
fn two_living_targets_of_one_pid_do_not_share_labels() {
    let mut report = report_of(&[(7, false, tasks(1, 3)), (7, false, tasks(2, 4))]);
    report.targets[1].id = "7-later".to_owned();
    report.callsites[1..]
        .iter_mut()
        .for_each(|callsite| callsite.target = "7-later".to_owned());
    let table = SeriesBook::new(Limits::default()).observe(&report);
    assert_eq!(sum(&table, 7, "task"), (8, 8, 0));
}

#[test]
fn a_counter_that_falls_in_the_report_does_not_fall_here() {
    let mut book = SeriesBook::new(Limits {
        callsites: 1,
        processes: 1,
    });
    let mut report = report_of(&[(1, false, tasks(3, 10))]);
    book.observe(&report);
    report.callsites.truncate(1);
    report.callsites[0].spawned = 4;
    report.callsites[0].live = 4;
    let table = book.observe(&report);
    assert_eq!(sum(&table, 1, "task"), (4, 30, 0));
    report.callsites.clear();
    assert_eq!(sum(&book.observe(&report), 1, "task"), (0, 30, 0));
}

#[test]
fn labels_improve_once_names_are_known_and_never_worsen() {
    let mut book = SeriesBook::new(Limits::default());
    let mut report = report_of(&[(1, false, tasks(1, 3))]);
    let named = report.callsites[0].location.clone();
    report.callsites[0].location = Location {
        image: Some("app".to_owned()),
        offset: Some(0x1234),
        ..Location::default()
    };
    let bare = report.callsites[0].location.clone();
    for (location, want) in [
        (&bare, ("", "app+0x1234")),
        (&named, ("app::accept", "src/main.rs:12")),
        (&bare, ("app::accept", "src/main.rs:12")),
        (&Location::default(), ("app::accept", "src/main.rs:12")),
    ] {
        report.callsites[0].location = location.clone();
        let table = book.observe(&report);
        let labels = &table.series[0].labels;
        assert_eq!((labels.function.as_str(), labels.location.as_str()), want);
        assert_eq!(table.series[0].values.spawned, 3);
    }
}

#[test]
fn names_of_a_pod_that_become_known_later_are_on_all_series_of_the_process() {
    let limits = Limits {
        callsites: 1,
        processes: 1,
    };
    let mut book = SeriesBook::new(limits);
    let model = |spawned| Model {
        spawned,
        ..Model::default()
    };
    let mut report = report_of(&[(7, false, vec![(0, model(5)), (KINDS.len(), model(3))])]);
    report.targets[0].container = Some("0123456789abcdef".repeat(4));
    let containers = |table: &SeriesTable| -> Vec<(String, String, String, u64)> {
        let parts = |series: &Series| {
            let labels = &series.labels;
            let (namespace, pod) = (labels.namespace.clone(), labels.pod.clone());
            (namespace, pod, labels.container.clone(), series.values.spawned)
        };
        table.series.iter().map(parts).collect()
    };
    let expected = |names: [&str; 3]| {
        let [namespace, pod, container] = names.map(str::to_owned);
        [5, 3].map(|spawned| (namespace.clone(), pod.clone(), container.clone(), spawned))
    };
    assert_eq!(containers(&book.observe(&report)), expected(["", "", "0123456789ab"]));

    report.targets[0].kubernetes = Some(PodNames {
        namespace: "shop".to_owned(),
        pod: "web-1".to_owned(),
        container: "app".to_owned(),
    });
    assert_eq!(containers(&book.observe(&report)), expected(["shop", "web-1", "app"]));

    // The API server's list no longer has it: labels stay, for a series that changes its name is a new one.
    report.targets[0].kubernetes = None;
    assert_eq!(containers(&book.observe(&report)), expected(["shop", "web-1", "app"]));
}
