//! Clients that are slow, a thousand at once, or talk nonsense: a normal one is answered all the same.

use super::{
    daemon::{Daemon, sample},
    host,
};
use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const SLOWHTTPTEST: &str = "/usr/bin/slowhttptest";

/// Seconds that each attack lasts.
const ATTACK_SECONDS: &str = "6";

/// A scrape takes milliseconds. A server whose places are all taken would let it wait for the ten seconds in which a request's head
/// must come.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// Headers that never end, a body that never ends, a reply that is hardly read.
const ATTACKS: [&[&str]; 3] = [&["-H"], &["-B"], &["-X", "-w", "1", "-y", "1", "-z", "1", "-n", "5"]];

/// What is no request.
const GARBAGE: [&[u8]; 7] = [
    b"\0\0\0\0\xff\xff\xff\xff",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET http://[::1/metrics HTTP/1.1\r\nhost: \x1b[2J\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"\r\n\r\n\r\n\r\n",
];

fn send(address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(ANSWER_MAX)).unwrap();
    // The server may have closed it before it has read all.
    let _broken = stream.write_all(bytes);
    let _broken = stream.shutdown(Shutdown::Write);
    let mut reply = Vec::new();
    let _broken = stream.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP/1.1 200"), "{}", bytes.escape_ascii());
}

#[test]
fn a_normal_client_is_answered_whatever_the_others_do() {
    let test = "a_normal_client_is_answered_whatever_the_others_do";
    if host::victim_for(test, "leaky_registry").is_none() {
        return;
    }
    if !Path::new(SLOWHTTPTEST).is_file() {
        return host::skip(test, "slowhttptest is not installed: run `cargo xtask setup`");
    }
    let daemon = Daemon::start(&["--include", "exe=/no/such/folder/*"]);
    let url = format!("http://{}/metrics", daemon.address());
    for attack in ATTACKS {
        let mut slow = Command::new(SLOWHTTPTEST)
            .args(attack)
            .args([
                "-c",
                "1000",
                "-r",
                "400",
                "-i",
                "2",
                "-l",
                ATTACK_SECONDS,
                "-p",
                "5",
                "-u",
                &url,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut times = Vec::new();
        while slow.try_wait().unwrap().is_none() {
            let began = Instant::now();
            assert!(daemon.get("/metrics").contains("leakmon_build_info"));
            times.push(began.elapsed());
            send(daemon.address(), GARBAGE[times.len() % GARBAGE.len()]);
            // tidy: the pace of a normal client, not a wait for anything.
            std::thread::sleep(Duration::from_millis(20));
        }
        times.sort_unstable();
        println!(
            "{attack:?}: {} answers, median {:?}, slowest {:?}",
            times.len(),
            times[times.len() / 2],
            times[times.len() - 1]
        );
        assert!(
            times[times.len() - 1] < ANSWER_MAX,
            "{attack:?}: {:?}",
            times[times.len() - 1]
        );
    }
    let metrics = daemon.get("/metrics");
    let evicted = metrics
        .lines()
        .find_map(|line| line.strip_prefix("leakmon_http_evicted_total "));
    assert!(
        evicted.unwrap().parse::<f64>().unwrap() > 0.0,
        "a thousand found no room at once"
    );
    assert!(sample(&metrics, "leakmon_build_info", &["version"]).is_some());
    daemon.stop();
}
