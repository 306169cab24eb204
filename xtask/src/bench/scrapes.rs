//! How long a client waits for `/metrics`, alone and beside a thousand slow ones.
//!
//! In: a daemon that watches nothing, and `slowhttptest` in the ways that the kernel tests use. Out: a table. What a scrape of many
//! series costs is `cargo bench --bench scrape`.

use super::{http, summary::Summary, watched::Watched};
use crate::{build_ebpf, victims, workspace::Workspace};
use anyhow::{Context as _, Result, bail};
use std::{
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// What the slow clients do, and what makes `slowhttptest` do it; the numbers of connections are the kernel test's.
const CLIENTS: [(&str, &[&str]); 4] = [
    ("none", &[]),
    ("headers that never end", &["-H"]),
    ("a body that never ends", &["-B"]),
    (
        "a reply that is hardly read",
        &["-X", "-w", "1", "-y", "1", "-z", "1", "-n", "5"],
    ),
];
const SLOW: [&str; 10] = ["-c", "1000", "-r", "400", "-i", "2", "-p", "5", "-l", SECONDS];
const SECONDS: &str = "6";
/// How long scrapes are measured where nobody is slow.
const ALONE: Duration = Duration::from_secs(6);
/// Between two scrapes.
const PACE: Duration = Duration::from_millis(20);

/// Measures and gives the table.
pub(super) fn run(workspace: &Workspace) -> Result<String> {
    build_ebpf::run(workspace, false)?;
    let leakmon = victims::build_leakmon(workspace)?;
    let mut command = Command::new(leakmon);
    let nothing = ["--include", "exe=/no/such/folder/*"];
    let mut daemon = Watched::leakmon(
        command
            .args(["daemon", "--no-pin", "--listen", "127.0.0.1:0"])
            .args(nothing),
    )?;
    let line = daemon.line_with("serving http://")?;
    let address = line.rsplit("http://").next().unwrap_or_default().trim_end_matches('/');
    let mut text = String::from(
        "Milliseconds until a client has `/metrics`, beside a thousand connections of slow ones\n\n\
         | slow clients | scrapes | median | lowest | highest |\n| --- | ---: | ---: | ---: | ---: |\n",
    );
    for (name, arguments) in CLIENTS {
        println!("bench: slow clients: {name}");
        let samples = scrapes(address, arguments)?;
        let Some(Summary { median, low, high }) = Summary::of(&samples) else {
            bail!("{name}: nothing was scraped: is slowhttptest installed? `cargo xtask setup` does that");
        };
        text.push_str(&format!(
            "| {name} | {} | {median:.1} | {low:.1} | {high:.1} |\n",
            samples.len()
        ));
    }
    daemon.end()?;
    Ok(text)
}

/// Milliseconds of each scrape while the slow ones are there.
fn scrapes(address: &str, arguments: &[&str]) -> Result<Vec<f64>> {
    let mut slow = match arguments {
        [] => None,
        _ => Some(
            Command::new("slowhttptest")
                .args(arguments)
                .args(SLOW)
                .args(["-u", &format!("http://{address}/metrics")])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .context("slowhttptest can't be started: `cargo xtask setup` installs it")?,
        ),
    };
    let (started, mut samples) = (Instant::now(), Vec::new());
    loop {
        let over = match &mut slow {
            Some(slow) => slow.try_wait()?.is_some(),
            None => started.elapsed() >= ALONE,
        };
        if over {
            return Ok(samples);
        }
        let began = Instant::now();
        http::get(address, "/metrics")?;
        samples.push(began.elapsed().as_secs_f64() * 1e3);
        // tidy: the pace of a normal client, not a wait for anything.
        thread::sleep(PACE);
    }
}
