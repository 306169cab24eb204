//! The view on screens of several sizes, and what keys do to it.

use super::*;
use crate::export::{report::Verdict, samples};
use ratatui::{Terminal, backend::TestBackend};

fn press(view: &mut View, code: KeyCode) -> Asked {
    view.press(KeyEvent::new(code, KeyModifiers::NONE))
}

fn keys(view: &mut View, text: &str) {
    for character in text.chars() {
        press(view, KeyCode::Char(character));
    }
}

/// A view that has seen the busy report grow for some seconds.
fn busy() -> View {
    let mut view = View::default();
    for live in 30..=43 {
        let mut report = samples::busy();
        report.callsites[0].live = live;
        view.take(report);
    }
    view
}

/// The screen as text.
fn screen(view: &View, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| page::draw(frame, view)).unwrap();
    terminal.backend().to_string()
}

#[test]
fn the_view_fits_every_screen() {
    for (width, height) in [(60, 15), (80, 24), (140, 40)] {
        insta::assert_snapshot!(format!("busy_{width}x{height}"), screen(&busy(), width, height));
    }
}

#[test]
fn no_screen_is_too_small_and_none_too_large() {
    for view in [View::default(), busy()] {
        for (width, height) in [(1, 1), (3, 2), (10, 5), (20, 200), (500, 3), (300, 100)] {
            let _drawn = screen(&view, width, height);
        }
    }
}

#[test]
fn empty_screens_say_why() {
    let mut view = View::default();
    assert!(screen(&view, 60, 15).contains("Waiting for the first report"));
    view.take(samples::empty());
    assert!(screen(&view, 60, 15).contains("No process is being watched"));
    view.take(Report {
        targets: vec![samples::target(7, "/bin/app")],
        ..samples::empty()
    });
    assert!(screen(&view, 60, 15).contains("No task has been spawned"));
    let mut view = busy();
    keys(&mut view, "/nowhere");
    assert!(screen(&view, 60, 15).contains("Nothing matches"));
}

#[test]
fn hostile_names_do_not_reach_the_terminal() {
    let mut view = View::default();
    view.take(samples::hostile());
    view.trouble("\u{1b}[2J gone".to_owned());
    for (width, height) in [(60, 15), (200, 50)] {
        let screen = screen(&view, width, height);
        let obeyed = screen
            .chars()
            .find(|character| *character != '\n' && crate::export::escape::is_hostile(*character));
        assert_eq!(obeyed, None, "{screen}");
    }
}

#[test]
fn the_selection_stays_with_its_callsite() {
    let mut view = busy();
    assert_eq!(view.row(), 0);
    press(&mut view, KeyCode::Down);
    let chosen = id(view.callsite(1).unwrap());
    keys(&mut view, "n");
    assert_eq!(id(view.callsite(view.row()).unwrap()), chosen);
    let mut report = samples::busy();
    report.callsites.reverse();
    view.take(report);
    assert_eq!(id(view.callsite(view.row()).unwrap()), chosen);
    for code in [KeyCode::End, KeyCode::Down, KeyCode::Down] {
        press(&mut view, code);
    }
    assert_eq!(view.row(), view.shown.len() - 1);
    press(&mut view, KeyCode::Home);
    assert_eq!(view.row(), 0);
}

#[test]
fn callsites_are_sorted_by_what_is_asked_for() {
    let mut view = busy();
    let firsts: Vec<(Order, u64)> = "vlgan"
        .chars()
        .map(|key| {
            press(&mut view, KeyCode::Char(key));
            (view.order, view.callsite(0).unwrap().live)
        })
        .collect();
    let expected = [
        (Order::Verdict, 43),
        (Order::Live, 43),
        (Order::Growth, 43),
        // The worker's two tasks are four hours old.
        (Order::Age, 2),
        (Order::Name, view.callsite(0).unwrap().live),
    ];
    assert_eq!(firsts, expected);
    let names: Vec<String> = (0..view.shown.len())
        .map(|row| page::name(view.callsite(row).unwrap()))
        .collect();
    assert!(names.is_sorted(), "{names:?}");
    keys(&mut view, "s");
    assert_eq!(view.order, Order::Verdict);
}

#[test]
fn the_filter_narrows_and_is_bounded() {
    let mut view = busy();
    let all = view.shown.len();
    keys(&mut view, "/LEAK");
    assert_eq!(view.shown.len(), 1);
    assert_eq!(view.callsite(0).unwrap().verdict, Verdict::Leak);
    // Letters are typed and choose no order; q does not quit.
    keys(&mut view, "q");
    assert_eq!((view.order, view.shown.len()), (Order::Verdict, 0));
    press(&mut view, KeyCode::Backspace);
    press(&mut view, KeyCode::Enter);
    assert_eq!(view.shown.len(), 1);
    press(&mut view, KeyCode::Esc);
    assert_eq!(view.shown.len(), all);
    keys(&mut view, "/");
    keys(&mut view, &"x".repeat(FILTER_MAX + 9));
    assert_eq!(view.filter.chars().count(), FILTER_MAX);
}

#[test]
fn a_paused_view_stays_as_it_is() {
    let mut view = busy();
    keys(&mut view, "p");
    let before = screen(&view, 80, 24);
    assert!(before.contains("PAUSED"));
    view.take(samples::hostile());
    assert_eq!(screen(&view, 80, 24), before);
    keys(&mut view, "p");
    view.take(samples::hostile());
    assert_ne!(screen(&view, 80, 24), before);
}

#[test]
fn the_last_that_was_seen_of_ended_processes_stays() {
    let mut view = busy();
    view.take(samples::empty());
    let text = screen(&view, 140, 40);
    assert!(
        text.contains("all processes have ended") && text.contains("handle_conn"),
        "{text}"
    );
}

#[test]
fn keys_that_quit_quit() {
    let mut view = busy();
    assert_eq!(press(&mut view, KeyCode::Char('q')), Asked::Quit);
    let control = |character| KeyEvent::new(KeyCode::Char(character), KeyModifiers::CONTROL);
    assert_eq!(view.press(control('c')), Asked::Quit);
    assert_eq!(view.press(control('x')), Asked::Nothing);
    assert_eq!(press(&mut view, KeyCode::F(1)), Asked::Nothing);
}
