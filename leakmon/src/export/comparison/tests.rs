//! Reports that differ in known ways, renamed programs, and bytes that are no report.

use super::*;
use crate::export::samples;
use crate::export::{Format, RenderOptions, render};
use proptest::prelude::*;

/// A report of one process with these callsites: function, live, spawned, verdict.
fn report(exe: &str, sites: &[(&str, u64, u64, Verdict)]) -> Report {
    let target = samples::target(7, exe);
    let callsites = sites.iter().map(|(function, live, spawned, verdict)| {
        let mut site = samples::callsite(&target, "0000000000000001", "task");
        (site.live, site.spawned, site.ended) = (*live, *spawned, spawned - live);
        site.verdict = *verdict;
        site.location.function = Some((*function).to_owned());
        site.task_type = Some(format!("{function}::{{{{closure}}}}"));
        site
    });
    Report {
        callsites: callsites.collect(),
        targets: vec![target],
        ..samples::empty()
    }
}

fn only(old: Report, new: Report, tolerance: u64) -> Change {
    let comparison = Comparison::new(old, new, tolerance);
    assert_eq!(comparison.sites.len(), 1, "{comparison:?}");
    comparison.sites[0].change
}

#[test]
fn a_change_is_called_by_its_name() {
    use Verdict::{Leak, Steady, Suspect, Unknown};
    for (old, new, tolerance, change) in [
        ((1, 1, Unknown), (2, 2, Unknown), 0, Change::Grew),
        ((1, 1, Unknown), (2, 2, Unknown), 1, Change::Same),
        ((1, 1, Unknown), (3, 3, Unknown), 1, Change::Grew),
        ((1, 1, Unknown), (20, 90, Steady), 0, Change::Same),
        ((0, 5, Steady), (0, 9, Steady), 0, Change::Same),
        ((43, 60, Leak), (0, 60, Unknown), 0, Change::Fixed),
        ((43, 60, Leak), (2, 60, Steady), 0, Change::Fixed),
        ((43, 60, Suspect), (2, 60, Unknown), 0, Change::Shrank),
        ((5, 5, Unknown), (0, 5, Unknown), 0, Change::Fixed),
        ((5, 5, Unknown), (0, 0, Unknown), 0, Change::Gone),
        (
            (u64::MAX / 4, u64::MAX / 4, Unknown),
            (0, 0, Unknown),
            u64::MAX,
            Change::Gone,
        ),
    ] {
        let side = |(live, spawned, verdict)| report("/bin/app", &[("app::f", live, spawned, verdict)]);
        assert_eq!(
            only(side(old), side(new), tolerance),
            change,
            "{old:?} {new:?} {tolerance}"
        );
    }
}

#[test]
fn what_is_in_one_report_only_is_new_or_gone() {
    let some = || report("/bin/app", &[("app::f", 3, 3, Verdict::Unknown)]);
    let none = || report("/bin/app", &[]);
    assert_eq!(only(none(), some(), 0), Change::Grew);
    assert_eq!(only(some(), none(), 0), Change::Gone);
}

#[test]
fn a_renamed_program_is_compared_with_what_it_was() {
    let old = report("/x/leaky-server", &[("leaky_server::serve", 43, 60, Verdict::Leak)]);
    let new = report("/y/fixed_server", &[("fixed_server::serve", 0, 60, Verdict::Unknown)]);
    let comparison = Comparison::new(old, new, 0);
    assert_eq!(comparison.count(Change::Fixed), 1);
    assert_eq!(comparison.sites[0].function.as_deref(), Some("crate::serve"));
    assert_eq!(
        comparison.sites[0].task_type.as_deref(),
        Some("crate::serve::{{closure}}")
    );
    assert_eq!(comparison.live, (43, 0));
}

#[test]
fn programs_that_are_in_both_reports_are_kept_apart() {
    let both = |grown| {
        let mut first = report("/bin/a", &[("lib::f", 1, 1, Verdict::Unknown)]);
        let mut second = report("/bin/b", &[("lib::f", grown, grown, Verdict::Unknown)]);
        second.targets[0].id = "8-1".to_owned();
        second.callsites[0].target = "8-1".to_owned();
        first.targets.append(&mut second.targets);
        first.callsites.append(&mut second.callsites);
        first
    };
    let comparison = Comparison::new(both(1), both(5), 0);
    assert_eq!((comparison.count(Change::Grew), comparison.count(Change::Same)), (1, 1));
}

#[test]
fn a_crate_is_renamed_where_it_begins_a_path() {
    for (text, want) in [
        ("app::run", Some("crate::run")),
        ("<app::Pool as app::Go>::go", Some("<crate::Pool as crate::Go>::go")),
        ("lib::app::run", None),
        ("myapp::run", None),
        ("app", None),
        ("wrap<app::a, lib::app::b>", Some("wrap<crate::a, lib::app::b>")),
    ] {
        assert_eq!(with_crate(text, "app").as_deref(), want, "{text}");
    }
}

#[test]
fn the_table_names_what_is_fixed_and_what_grew() {
    let old = report(
        "/bin/app",
        &[
            ("app::handle_conn", 43, 60, Verdict::Leak),
            ("app::poll", 2, 2, Verdict::Unknown),
            ("app::main", 1, 1, Verdict::Steady),
        ],
    );
    let new = report(
        "/bin/app",
        &[
            ("app::handle_conn", 0, 60, Verdict::Steady),
            ("app::poll", 9, 9, Verdict::Suspect),
            ("app::main", 1, 1, Verdict::Steady),
        ],
    );
    let comparison = Comparison::new(old, new, 0);
    for width in [None, Some(80), Some(60)] {
        let options = RenderOptions { width, colour: false };
        let text = String::from_utf8(table(&comparison, &options)).unwrap();
        insta::assert_snapshot!(format!("comparison_{}", width.unwrap_or(0)), text);
        assert!(width.is_none_or(|width| text.lines().all(|line| line.chars().count() <= usize::from(width))));
    }
    let value: serde_json::Value = serde_json::from_slice(&json(&comparison)).unwrap();
    assert_eq!((value["grew"].as_u64(), value["fixed"].as_u64()), (Some(1), Some(1)));
    assert_eq!(value["callsites"][0]["new"]["live"], 9);
}

#[test]
fn the_graph_keeps_the_tower_that_vanished() {
    let old = report("/bin/app", &[("app::handle_conn", 43, 60, Verdict::Leak)]);
    let new = report("/bin/app", &[("app::handle_conn", 0, 60, Verdict::Steady)]);
    let graph = String::from_utf8(svg(&Comparison::new(old, new, 0))).unwrap();
    assert!(graph.contains("crate::handle_conn (43 tasks, 100.00%"), "{graph}");
    assert!(graph.contains("Alive: 43 before, 0 after"), "{graph}");
}

#[test]
fn a_report_comes_back_as_it_was_written() {
    let report = samples::busy();
    let read = parse(&render(Format::Json, &report, &RenderOptions::default())).unwrap();
    // Build ids of frames are not in JSON.
    let mut want = report;
    for frame in want
        .callsites
        .iter_mut()
        .flat_map(|site| &mut site.stacks)
        .flat_map(|stack| &mut stack.frames)
    {
        frame.build_id = None;
    }
    assert_eq!(read, want);
    let unchanged = Comparison::new(read.clone(), read, 0);
    assert_eq!(unchanged.count(Change::Same), unchanged.sites.len());
}

#[test]
fn what_is_no_report_is_refused_with_a_sentence() {
    let huge = format!(
        "{{\"schema\":1,\"observed_seconds\":1,\"targets\":[],\"callsites\":[],\"loss\":{}}}",
        "[".repeat(100_000)
    );
    let mut counts = samples::busy();
    counts.callsites[0].live = (1 << 40) + 1;
    let counts = render(Format::Json, &counts, &RenderOptions::default());
    let kind = String::from_utf8(render(Format::Json, &samples::busy(), &RenderOptions::default()))
        .unwrap()
        .replace("\"blocking\"", "\"\\u001b[2J\"");
    for (bytes, word) in [
        (&b""[..], "not a leakmon report"),
        (b"\x7fELF", "not a leakmon report"),
        (b"[]", "not a leakmon report"),
        (b"{\"schema\":2}", "schema 2"),
        (b"{\"schema\":1}", "observed_seconds"),
        (b"{\"schema\":-1}", "not a leakmon report"),
        (b"{\"schema\":1e400}", "not a leakmon report"),
        (huge.as_bytes(), "not a leakmon report"),
        (&counts, "count"),
        (kind.as_bytes(), "kind"),
    ] {
        let error = parse(bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

proptest! {
    #[test]
    fn any_two_reports_can_be_compared(
        old in proptest::collection::vec((0_u64..4, 0_u64..50), 0..6),
        new in proptest::collection::vec((0_u64..4, 0_u64..50), 0..6),
        tolerance in 0_u64..10,
    ) {
        let functions = ["app::a", "app::b", "lib::c", "d"];
        let make = |sites: &[(u64, u64)]| {
            let sites: Vec<_> = sites.iter().map(|(function, live)| (functions[*function as usize], *live, *live, Verdict::Unknown)).collect();
            report("/bin/app", &sites)
        };
        let comparison = Comparison::new(make(&old), make(&new), tolerance);
        let sum = |sites: &[(u64, u64)], function: usize| -> u64 { sites.iter().filter(|site| site.0 as usize == function).map(|site| site.1).sum() };
        prop_assert_eq!(comparison.live.0, old.iter().map(|site| site.1).sum::<u64>());
        let grown = (0..4).filter(|function| sum(&new, *function) > sum(&old, *function) + tolerance).count();
        prop_assert_eq!(comparison.count(Change::Grew), grown);
        let total: usize = Change::ALL.into_iter().map(|change| comparison.count(change)).sum();
        prop_assert_eq!(total, comparison.sites.len());
    }
}
