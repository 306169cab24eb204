//! The Grafana dashboard: what every panel must have. That its queries return data is tested with a real Prometheus.

use super::deployed;
use serde_json::Value;
use std::{collections::HashSet, fs};

#[test]
fn every_panel_says_what_it_shows_and_asks_the_chosen_server() {
    let text = fs::read_to_string(deployed("grafana/leakmon.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(dashboard["schemaVersion"], 42);
    let variables: Vec<_> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| (variable["name"].as_str().unwrap(), variable["type"].as_str().unwrap()))
        .collect();
    for wanted in [
        ("datasource", "datasource"),
        ("pyroscope", "datasource"),
        ("instance", "query"),
        ("process", "query"),
        ("callsite", "query"),
    ] {
        assert!(variables.contains(&wanted), "{variables:?}");
    }
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut kinds, mut places) = (HashSet::new(), HashSet::new(), HashSet::new());
    for panel in panels {
        let title = panel["title"].as_str().unwrap();
        let kind = panel["type"].as_str().unwrap();
        assert!(
            !title.is_empty() && ids.insert(panel["id"].as_u64().unwrap()),
            "{title}"
        );
        let place = &panel["gridPos"];
        assert!(
            places.insert((place["x"].as_u64(), place["y"].as_u64())),
            "{title} lies over another panel"
        );
        kinds.insert(kind);
        if kind == "row" {
            continue;
        }
        assert!(
            panel["description"].as_str().is_some_and(|text| text.len() > 20),
            "{title}: no description"
        );
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
        let server = if kind == "flamegraph" {
            "${pyroscope}"
        } else {
            "${datasource}"
        };
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], server, "{title}");
            let query = target["expr"].as_str().unwrap_or_default();
            assert_eq!(
                query.contains("rate("),
                query.contains("$__rate_interval"),
                "{title}: {query}"
            );
        }
    }
    for kind in ["row", "timeseries", "stat", "table", "flamegraph"] {
        assert!(kinds.contains(kind), "{kinds:?}");
    }
}
