//! A comparison in JSON: `schema`, `old` and `new` (`observed_seconds`, `live`), one number for each change, and
//! `callsites`, those that are the same left out. Strings are written as in the report.

use super::{Change, Comparison, Counts};
use crate::export::json;
use serde_json::{Map, Value, json};

/// The comparison as JSON text.
#[must_use]
pub fn render(comparison: &Comparison) -> Vec<u8> {
    let side = |live: u64, seconds: f64| json!({ "observed_seconds": seconds, "live": live });
    let counts = |counts: Counts| {
        json!({
            "live": counts.live,
            "spawned": counts.spawned,
            "ended": counts.ended,
            "verdict": counts.verdict.as_str(),
        })
    };
    let changed = comparison.sites.iter().filter(|site| site.change != Change::Same);
    let callsites: Vec<Value> = changed
        .map(|site| {
            json!({
                "change": site.change.as_str(),
                "kind": site.kind,
                "task_type": site.task_type,
                "function": site.function,
                "line": site.line,
                "old": counts(site.old),
                "new": counts(site.new),
                "evidence": site.evidence,
            })
        })
        .collect();
    let mut object = Map::new();
    object.insert("schema".to_owned(), json!(1));
    object.insert("old".to_owned(), side(comparison.live.0, comparison.observed_seconds.0));
    object.insert("new".to_owned(), side(comparison.live.1, comparison.observed_seconds.1));
    for change in Change::ALL {
        object.insert(change.as_str().to_owned(), json!(comparison.count(change)));
    }
    object.insert("callsites".to_owned(), Value::Array(callsites));
    json::bounded(&object)
}
