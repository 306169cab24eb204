//! Callsites through wrappers: the location is what a person would call the culprit, whoever spawns on their behalf.

use super::{host, observer::Run};
use std::sync::OnceLock;

/// Compares the location of one site's births with the function that the victim names. `also` is another good answer.
fn the_culprit_is_named(test: &str, site: &str, also: Option<&str>) {
    static RUN: OnceLock<Run> = OnceLock::new();
    let Some(victim) = host::victim_for(test, "wrappers") else {
        return;
    };
    let run = RUN.get_or_init(|| Run::of(&[], &victim, &[]));
    assert_eq!(run.report.task(), run.truth().total());
    let site = run
        .truth()
        .sites()
        .into_iter()
        .find(|known| known.name == site)
        .unwrap();
    let wanted: Vec<String> = [Some(site.spawned_by.as_str()), also]
        .into_iter()
        .flatten()
        .map(|function| format!("wrappers::{function}::"))
        .collect();
    let mut spawned = 0;
    for callsite in run.report.callsites() {
        let function = format!("{}::", callsite["location"]["function"].as_str().unwrap_or_default());
        if wanted.iter().any(|wanted| function.starts_with(wanted)) {
            spawned += callsite["spawned"].as_u64().unwrap();
        }
    }
    assert_eq!(
        spawned,
        site.counts.spawned,
        "{wanted:?} in {:#}",
        run.report.locations()
    );
}

#[test]
fn axums_server_is_called_by_the_culprit() {
    the_culprit_is_named("axums_server_is_called_by_the_culprit", "answer", None);
}

#[test]
fn hypers_client_is_called_by_the_culprit() {
    the_culprit_is_named("hypers_client_is_called_by_the_culprit", "connection", None);
}

#[test]
fn hypers_executor_is_called_by_the_culprit() {
    the_culprit_is_named("hypers_executor_is_called_by_the_culprit", "executed", None);
}

#[test]
fn a_join_set_is_filled_by_the_culprit() {
    the_culprit_is_named("a_join_set_is_filled_by_the_culprit", "page", None);
}

#[test]
fn a_future_among_others_or_who_polls_them_is_the_culprit() {
    // Without debug information the future's code may be part of who polls it.
    let test = "a_future_among_others_or_who_polls_them_is_the_culprit";
    the_culprit_is_named(test, "entry", Some("poll_feeds"));
}

#[test]
fn a_task_tracker_is_used_by_the_culprit() {
    the_culprit_is_named("a_task_tracker_is_used_by_the_culprit", "job", None);
}

#[test]
fn a_spawn_function_of_the_users_is_called_by_the_culprit() {
    the_culprit_is_named(
        "a_spawn_function_of_the_users_is_called_by_the_culprit",
        "session",
        None,
    );
}
