//! A census as text and JSON.

use super::*;

fn counts(alive: u64, unwakeable: u64, held: u64) -> CensusCounts {
    CensusCounts {
        alive,
        idle: alive,
        unwakeable,
        abortable: unwakeable / 2,
        held,
        bytes: Some(256 * (alive + held)),
        held_bytes: Some(256 * held),
        ..CensusCounts::default()
    }
}

fn row(name: Option<&str>, kind: &'static str, counts: CensusCounts) -> CensusType {
    CensusType {
        task_type: name.map(str::to_owned),
        kind,
        vtable: 0x5000 + counts.alive,
        runtime_owned: kind == "blocking",
        task_bytes: Some(256),
        counts,
    }
}

fn census(types: Vec<CensusType>) -> ProcessCensus {
    let mut tasks = CensusCounts::default();
    types.iter().for_each(|row| tasks.add(&row.counts));
    let mut types = types;
    sort(&mut types);
    let census = CensusReport {
        tasks,
        types,
        older: None,
        disagreement: None,
        share: 1.0,
        scanned_bytes: 7 << 20,
        seconds: 0.015,
        reason: None,
    };
    ProcessCensus::new(
        4711,
        "/usr/bin/app".to_owned(),
        "tokio",
        Some("1.54.1".to_owned()),
        census,
    )
}

#[test]
fn a_census_as_text() {
    let mut census = census(vec![
        row(Some("tokio::runtime::Worker"), "blocking", counts(2, 0, 0)),
        row(Some("app::handle_conn::{{closure}}"), "task", counts(1000, 7, 0)),
        row(None, "task", counts(3, 0, 2000)),
        row(Some("app::\u{1b}[2Jevil"), "local", counts(1, 0, 0)),
    ]);
    let wide = census.table(&RenderOptions::default());
    insta::assert_snapshot!("census", wide);
    census.census.share = 0.42;
    let narrow = RenderOptions {
        width: Some(100),
        colour: false,
    };
    let text = census.table(&narrow);
    assert!(
        text.contains("42 % of its memory: the numbers are lower bounds"),
        "{text}"
    );
    let rows = text.lines().filter(|line| line.contains("task  "));
    assert!(
        rows.clone().count() > 0 && rows.clone().all(|line| line.chars().count() <= 110),
        "{text}"
    );
}

#[test]
fn a_census_without_tasks_says_so() {
    assert!(
        census(Vec::new())
            .table(&RenderOptions::default())
            .contains("It holds no task now.")
    );
}

#[test]
fn a_census_as_json_has_the_counts_of_each_type() {
    let census = census(vec![row(Some("a"), "task", counts(5, 1, 2))]);
    let value: serde_json::Value = serde_json::from_slice(&census.json()).unwrap();
    assert_eq!(value["schema"], 1);
    assert_eq!(value["census"]["types"][0]["alive"], 5);
    assert_eq!(value["census"]["types"][0]["task_bytes"], 256);
    assert_eq!(value["census"]["tasks"]["held_bytes"], 512);
}

#[test]
fn memory_that_is_not_known_is_left_out_of_sums() {
    let mut sum = counts(1, 0, 1);
    sum.add(&CensusCounts {
        bytes: None,
        ..counts(1, 0, 1)
    });
    assert_eq!((sum.alive, sum.bytes, sum.held_bytes), (2, Some(512), Some(512)));
    assert_eq!(
        (bytes(None), bytes(Some(1023)), bytes(Some(3 << 29))),
        ("?".into(), "1023 B".into(), "1.5 GiB".into())
    );
}
