//! Verdicts on a real leak, while it grows.

use super::{host, observer::Attach, victim::Victim};

#[test]
fn a_leak_is_a_suspect_after_half_a_minute_and_stands_first() {
    let Some(path) = host::victim_for(
        "a_leak_is_a_suspect_after_half_a_minute_and_stands_first",
        "leaky_registry",
    ) else {
        return;
    };
    // A subscriber each 450 ms, 36 seconds long: half of that rate would still do.
    let mut victim = Victim::start(&path, &["--connections", "95", "--pace-ms", "450"]);
    victim.await_ready();
    let attach = Attach::start(&["-p", &victim.tgid().to_string()]);
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let _truth = victim.truth();
    let report = attach.report();
    let callsites = report.callsites();
    let first = &callsites[0];
    let name = first["task_type"].as_str().unwrap();
    assert!(name.contains("handle_conn"), "{callsites:#?}");
    assert_eq!(first["verdict"], "suspect", "{first:#?}");
    let growth = first["growth_per_minute"].as_f64().unwrap();
    assert!((60.0..=150.0).contains(&growth), "{growth}");
    assert!(first["evidence"].as_str().unwrap().contains("more a minute"), "{first}");
    let alarms = callsites.iter().skip(1).filter(|callsite| {
        let verdict = callsite["verdict"].as_str().unwrap();
        verdict == "leak" || verdict == "suspect"
    });
    assert_eq!(alarms.count(), 0, "{callsites:#?}");
}
