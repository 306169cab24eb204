//! The table at several widths, and with hostile names.

use super::*;
use crate::export::samples;
use proptest::prelude::*;

fn text(report: &Report, width: Option<u16>, colour: bool) -> String {
    String::from_utf8(render(report, &RenderOptions { width, colour })).unwrap()
}

fn assert_fits(text: &str, width: u16) {
    for line in text.lines() {
        assert!(
            shorten::columns(line) <= usize::from(width),
            "{} columns in {width}: {line}",
            shorten::columns(line)
        );
        assert_eq!(line, line.trim_end());
    }
}

#[test]
fn the_report_at_common_widths() {
    for width in [40, 80, 120, 200] {
        let text = text(&samples::busy(), Some(width), false);
        assert_fits(&text, width);
        insta::assert_snapshot!(format!("busy_table_{width}"), text);
    }
}

#[test]
fn without_a_terminal_nothing_is_cut() {
    insta::assert_snapshot!("busy_table_unbounded", text(&samples::busy(), None, false));
}

#[test]
fn colour_adds_only_escape_sequences() {
    let coloured = text(&samples::busy(), Some(80), true);
    insta::assert_snapshot!("busy_table_colour", coloured.replace('\u{1b}', "ESC"));
    let mut plain = String::new();
    for (index, part) in coloured.split('\u{1b}').enumerate() {
        plain.push_str(if index == 0 {
            part
        } else {
            part.split_once('m').unwrap().1
        });
    }
    assert_eq!(plain, text(&samples::busy(), Some(80), false));
}

#[test]
fn hostile_names_reach_no_terminal() {
    for width in [Some(40), Some(80), Some(200), None] {
        let text = text(&samples::hostile(), width, false);
        assert!(
            !text
                .chars()
                .any(|character| character != '\n' && escape::is_hostile(character)),
            "{text}"
        );
        if let Some(width) = width {
            assert_fits(&text, width);
        }
    }
    insta::assert_snapshot!("hostile_table_80", text(&samples::hostile(), Some(80), false));
}

#[test]
fn empty_states_say_what_is_missing() {
    let mut report = samples::empty();
    assert_eq!(text(&report, Some(80), false), "No process is being watched.\n");
    report.targets.push(samples::target(7, "/usr/bin/app"));
    insta::assert_snapshot!("empty_table", text(&report, Some(80), false));
    report.targets[0].status = TargetStatus::Unsupported;
    report.targets[0].reason = Some("no tokio in it".to_owned());
    report.targets[0].runtime = None;
    assert_eq!(
        text(&report, Some(80), false),
        "app (PID 7), unsupported, /usr/bin/app\n  unsupported: no tokio in it\n",
    );
}

#[test]
fn losses_are_told_in_words_and_only_if_there_are_any() {
    let mut report = samples::empty();
    assert_eq!(text(&report, None, false).lines().count(), 1);
    report.loss = LossReport {
        events_dropped: 1,
        live_full: 2,
        counts_full: 1,
        paused: 5,
        targets_full: 1,
        images_full: 2,
        processes_unjudged: 3,
        untracked_ends: 4,
        stacks_full: 1,
        stacks_truncated: 3,
        unmatched_ends: 12,
        replaced: 1,
    };
    insta::assert_snapshot!("losses_table", text(&report, Some(80), false));
}

#[test]
fn callsites_and_processes_beyond_the_bound_are_counted() {
    let busy = samples::busy();
    for (extra, want) in [
        (0, None),
        (1, Some("… and 1 more callsite that")),
        (70, Some("… and 70 more callsites that")),
    ] {
        let mut report = busy.clone();
        report.callsites = vec![busy.callsites[0].clone(); CALLSITES_MAX + extra];
        report.targets = vec![busy.targets[0].clone(); TARGETS_MAX + extra];
        let text = text(&report, Some(120), false);
        assert_eq!(text.matches("(PID 83920)").count(), TARGETS_MAX);
        assert_eq!(
            text.lines().filter(|line| line.contains("43       60     17")).count(),
            CALLSITES_MAX
        );
        assert_eq!(text.contains("… and"), want.is_some());
        assert!(want.is_none_or(|sentence| text.contains(sentence)), "{text}");
    }
}

#[test]
fn counts_as_large_as_they_get_stay_whole() {
    let mut report = samples::busy();
    report.callsites[0].live = u64::MAX;
    report.callsites[0].spawned = u64::MAX;
    for width in [40, 80, 200] {
        assert!(text(&report, Some(width), false).contains(&u64::MAX.to_string()));
    }
}

proptest! {
    #[test]
    fn any_names_fit_any_width(
        names in prop::collection::vec("(\\PC|[a-z:<>]{1,40}|\u{1b}){0,8}", 5),
        width in 0_u16..220,
        live in 0_u64..1_000_000,
    ) {
        let mut report = samples::busy();
        let callsite = &mut report.callsites[0];
        callsite.task_type = Some(names[0].clone());
        callsite.location.function = Some(names[1].clone());
        callsite.location.file = Some(names[2].clone());
        callsite.live = live;
        callsite.stacks[0].frames[0].function = Some(names[1].clone());
        report.targets[0].exe = format!("/{}", names[3]);
        report.targets[0].reason = Some(names[4].clone());
        assert_fits(&text(&report, Some(width), false), width.max(40));
    }
}
