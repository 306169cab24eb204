//! The page in a real browser: a live victim's leak, search, zoom, keys, and names that mean harm.

use super::{
    browser::Browser,
    daemon::{Daemon, leaking, of_victim},
    host,
    victim::Victim,
};
use arc_swap::ArcSwap;
use leakmon::{
    export::{
        comparison,
        http::{self, Source},
        series::SeriesTable,
        snapshot::{Heartbeat, Snapshot},
    },
    self_metrics::SelfMetrics,
};
use serde_json::json;
use std::{net::SocketAddr, sync::Arc, time::Instant};

/// A frame's width where it takes the whole graph.
const ZOOMED: &str = "document.querySelector('.frame.own[style*=\"width: 100%\"]')";

#[test]
fn the_page_shows_the_leak_of_a_live_victim() {
    const TEST: &str = "the_page_shows_the_leak_of_a_live_victim";
    let Some(path) = host::victim_for(TEST, "leaky_registry") else {
        return;
    };
    let Some(browser) = Browser::start(TEST) else {
        return;
    };
    let mut victim = Victim::start(&path, &[]);
    let daemon = Daemon::start(&["-p", &victim.tgid().to_string()]);
    daemon.await_report("the victim", |report| of_victim(report, victim.tgid()).is_some());
    victim.await_ready();
    victim.go_on();
    victim.await_ready();
    victim.go_on();
    let truth = victim.truth();
    let leak = truth
        .sites()
        .into_iter()
        .find(|site| site.name == "handle_conn")
        .unwrap()
        .counts;
    daemon.await_report("the leak", |report| leaking(report, victim.tgid()).1 == leak);

    browser.open(&format!("http://{}/", daemon.address));
    let row = "document.querySelector('#rows tr')?.textContent";
    browser.wait_for(&format!("{row}?.includes('handle_conn')"));
    assert_eq!(
        browser.value("document.querySelector('#rows tr td.number').textContent"),
        leak.live.to_string()
    );
    let detail = browser.wait_for("document.querySelector('#detail-body ol')?.textContent");
    assert!(detail.as_str().unwrap().contains("accept_loop"), "{detail}");

    search_and_zoom(&browser, leak.live);

    // Arrow keys choose the next callsite.
    browser.enter("#rows tr[aria-selected=true]", "\u{e015}");
    browser.wait_for("document.activeElement.matches('#rows tr:nth-child(2)[aria-selected=true]')");

    let background = "getComputedStyle(document.body).backgroundColor";
    browser.prefer("light");
    let light = browser.value(background);
    browser.prefer("dark");
    assert_ne!(browser.value(background), light);

    assert_eq!(browser.complaints(), Vec::<String>::new());
    let own = format!("http://{}/", daemon.address);
    let requests = browser.requests();
    assert!(requests.len() > 10, "{requests:?}");
    assert!(
        requests
            .iter()
            .all(|url| url.starts_with(&own) || url.starts_with("data:")),
        "{requests:?}"
    );
    drop(victim);
    daemon.stop();
}

/// Searches for the function that spawns, and zooms into it.
fn search_and_zoom(browser: &Browser, live: u64) {
    // A search marks the function and says how many tasks are under it.
    browser.enter("#search", "ACCEPT_LOOP");
    browser.wait_for("document.querySelector('.frame.match')?.title.includes('accept_loop')");
    let found = browser.value("document.getElementById('found').textContent");
    assert!(
        found.as_str().unwrap().starts_with(&format!("{} live task", live + 1)),
        "{found}"
    );
    // The same key leaves the field, empties it, and brings everything back.
    browser.enter("#search", "\u{e00c}");
    browser.wait_for("!document.querySelector('.frame.match') && document.getElementById('search').value === ''");

    // A click makes a frame as wide as the graph, and the button takes that back.
    assert!(browser.value(ZOOMED).is_null());
    browser.click(".frame.own[title*='accept_loop']");
    browser.wait_for(&format!("{ZOOMED}?.title.includes('accept_loop')"));
    browser.click("#unzoom");
    browser.wait_for(&format!("!{ZOOMED} && document.getElementById('unzoom').disabled"));
}

#[test]
fn hostile_names_stay_text_in_the_page() {
    const TEST: &str = "hostile_names_stay_text_in_the_page";
    let Some(browser) = Browser::start(TEST) else {
        return;
    };
    let address = serve(&hostile_report());
    browser.open(&format!("http://{address}/"));
    let shown = browser.wait_for("document.querySelector('#rows tr')?.textContent");
    assert!(shown.as_str().unwrap().contains("<img src=x onerror="), "{shown}");
    let frames = "[...document.querySelectorAll('.frame')].some((frame) => frame.title.includes('</div><script>'))";
    browser.wait_for(frames);
    assert_eq!(
        browser.value("document.querySelectorAll('script, main img, iframe').length"),
        1
    );
    assert_eq!(browser.value("typeof window.pwned"), "undefined");

    browser.open(&format!("http://{address}/flamegraph.svg"));
    browser.wait_for(
        "[...document.querySelectorAll('title')].some((title) => title.textContent.includes('</div><script>'))",
    );
    assert_eq!(browser.value("typeof window.pwned"), "undefined");
    let own = format!("http://{address}/");
    let requests = browser.requests();
    assert!(
        requests
            .iter()
            .all(|url| url.starts_with(&own) || url.starts_with("data:")),
        "{requests:?}"
    );
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

/// A report whose names would be markup, script or a way out.
fn hostile_report() -> serde_json::Value {
    let image = "<img src=x onerror=\"window.pwned=1\">";
    let script = "</div><script>window.pwned=1</script>\"'><a href='http://example.com/'>";
    let counts = json!({ "spawned": 9, "ended": 2, "live": 7 });
    json!({
        "schema": 1, "observed_seconds": 10.0,
        "targets": [{
            "id": "7-1", "pid": 7, "exe": format!("/bin/{}", script.replace('/', "")), "build_id": null, "runtime": image,
            "runtime_version": script, "status": "partial", "reason": script,
            "sites": { "spawn": 1, "end": 1, "slow": 0 }, "task": counts, "thread": null, "exited": false,
        }],
        "callsites": [{
            "id": image, "target": "7-1", "pid": 7, "kind": "task", "live": 7, "spawned": 9, "ended": 2,
            "oldest_seconds": 9.0, "growth_per_minute": null, "verdict": "suspect", "evidence": script, "states": null,
            "task_type": image, "location": { "function": script, "file": script, "line": 1 },
            "stacks": [{
                "live": 7, "spawned": 9, "complete": true,
                "frames": [{ "function": script, "file": image, "line": 1, "image": script, "offset": 1, "inlined": false }],
            }],
        }],
        "loss": {
            "events_dropped": 0, "live_full": 0, "stacks_full": 0, "stacks_truncated": 0, "unmatched_ends": 0, "replaced": 0,
        },
    })
}

/// Serves a report for as long as this process runs.
fn serve(report: &serde_json::Value) -> SocketAddr {
    let report = comparison::parse(report.to_string().as_bytes()).unwrap();
    let snapshot = Snapshot::new(report, SeriesTable::default(), SelfMetrics::default(), true);
    let source = Source {
        snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
        heartbeat: Arc::new(Heartbeat::since(Instant::now())),
        evicted: Arc::default(),
        pushes: Default::default(),
    };
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let gate = std::sync::Arc::new(http::Gate::open());
            http::serve(listener, source, gate, Default::default(), std::future::pending()).await
        })
    });
    address
}
