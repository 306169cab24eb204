//! Exact counts, whatever way a task is spawned and ends.

use super::{
    host,
    observer::{Attach, Run},
    truth::{Counts, Report, Truth},
    victim::Victim,
};

/// Runs that must all be exact.
const RUNS: usize = 20;

#[test]
fn every_way_of_spawning_is_counted_exactly() {
    let Some(victim) = host::victim_for("every_way_of_spawning_is_counted_exactly", "every_spawn") else {
        return;
    };
    for run in 0..RUNS {
        let run_of = Run::of(&[], &victim, &[]);
        assert!(run_of.output.status.success(), "run {run}");
        let (truth, report) = (run_of.truth(), &run_of.report);
        assert_eq!(report.task(), truth.total(), "run {run}");
        assert_eq!(report.target()["status"], "attached", "run {run}");
        for loss in ["live_full", "stacks_full", "unmatched_ends", "replaced"] {
            assert_eq!(report.loss(loss), 0, "{loss} in run {run}");
        }
        compare_sites(&truth, report, run);
    }
}

/// Each function of the victim whose code is its own against the callsites of its type, and all blocking ones together.
fn compare_sites(truth: &Truth, report: &Report, run: usize) {
    let types = report.by_task_type();
    let mut compared = 0;
    for site in truth.sites().iter().filter(|site| site.kind != "blocking") {
        let wanted = format!("every_spawn::{}::{{{{closure}}}}", site.name);
        // Where the compiler merged identical code a type stands for several functions, and its name says so.
        if let Some(counts) = types.get(&wanted) {
            assert_eq!(*counts, site.counts, "{} in run {run}", site.name);
            compared += 1;
        }
    }
    // The victim's futures that wait for ever are all alike; the others are not.
    assert!(compared >= 10, "run {run}: {compared} of {types:#?}");
    let blocking = report.of_kinds(&["blocking"]);
    let mut expected = Counts {
        spawned: 2,
        ended: 0,
        live: 2,
    };
    for site in truth.sites().iter().filter(|site| site.kind == "blocking") {
        expected.spawned += site.counts.spawned;
        expected.ended += site.counts.ended;
        expected.live += site.counts.live;
    }
    assert_eq!(blocking, expected, "blocking tasks and the workers in run {run}");
}

#[test]
fn a_registry_that_is_never_emptied_is_the_first_callsite() {
    let Some(victim) = host::victim_for(
        "a_registry_that_is_never_emptied_is_the_first_callsite",
        "leaky_registry",
    ) else {
        return;
    };
    let run = Run::of(&[], &victim, &[]);
    let leak = run
        .truth()
        .sites()
        .into_iter()
        .find(|site| site.name == "handle_conn")
        .unwrap();
    let first = &run.report.callsites()[0];
    assert_eq!(Counts::of(first), leak.counts);
    assert!(
        first["task_type"].as_str().unwrap().contains("::handle_conn::"),
        "{first:#}"
    );
    assert_eq!(run.report.task(), run.truth().total());
}

#[test]
fn a_registry_that_is_emptied_keeps_only_the_servers_own_tasks() {
    let name = "a_registry_that_is_emptied_keeps_only_the_servers_own_tasks";
    let Some(victim) = host::victim_for(name, "fixed_registry") else {
        return;
    };
    let run = Run::of(&[], &victim, &[]);
    assert_eq!(run.report.task(), run.truth().total());
    let handlers = run
        .report
        .by_task_type()
        .into_iter()
        .find(|(name, _)| name.contains("::handle_conn::"))
        .unwrap()
        .1;
    assert_eq!(handlers.live, 0);
    assert!(handlers.spawned > 0);
}

#[test]
fn attaching_counts_exactly_what_is_born_afterwards() {
    for victim in ["every_spawn", "leaky_registry"] {
        let Some(path) = host::victim_for("attaching_counts_exactly_what_is_born_afterwards", victim) else {
            return;
        };
        let mut victim = Victim::start(&path, &[]);
        victim.await_ready();
        victim.go_on();
        victim.await_ready();
        // The tasks of the first phase are there, and older than the attach.
        let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
        victim.go_on();
        let truth = victim.truth();
        let report = attach.report();
        assert_eq!(report.task(), truth.second_phase());
        assert_eq!(report.loss("unmatched_ends"), truth.older_ended());
        assert!(truth.older_ended() > 0, "the victim ends some of its old tasks");
        for callsite in report
            .callsites()
            .iter()
            .filter(|callsite| callsite["born_before_attach"] == 0 && callsite["kind"] != "held")
        {
            let counts = Counts::of(callsite);
            assert_eq!(counts.live, counts.spawned - counts.ended, "{callsite:#}");
        }
    }
}
