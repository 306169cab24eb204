//! What a server that does more than spawning loses in throughput under leakmon.
//!
//! In: the victim `echo_server`, and a closed-loop load of this process's own over loopback. Out: a table. One server runs all
//! the time; leakmon comes and goes, so that each round compares neighbours in time.

use super::{Effort, http::Connection, remnants, summary::Summary, watched::Watched};
use crate::{
    build_ebpf,
    victims::{self, Build},
    workspace::Workspace,
};
use anyhow::{Context as _, Result, bail};
use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

const VICTIM: &str = "echo_server";
/// Clients that each ask, wait for the answer, and ask again.
const CLIENTS: usize = 4;
/// Requests of one connection, and so of one task.
const REQUESTS: usize = 100;
/// How long throughput is measured at a time.
const WINDOW: Duration = Duration::from_secs(2);
const BODY: &[u8] = &[b'x'; 512];

/// Runs the rounds and gives the table.
pub(super) fn run(workspace: &Workspace, Effort { rounds, .. }: Effort) -> Result<String> {
    build_ebpf::run(workspace, false)?;
    let leakmon = victims::build_leakmon(workspace)?;
    victims::build(workspace, Build::Release, Some(VICTIM))?;
    let mut server = Watched::victim(&mut Command::new(Build::Release.example(workspace, VICTIM)))?;
    let address = format!("127.0.0.1:{}", server.line()?);
    let (mut alone, mut watched) = (Vec::new(), Vec::new());
    requests_per_second(&address)?;
    for round in 1..=rounds {
        println!("bench: round {round} of {rounds}");
        let before = requests_per_second(&address)?;
        let mut command = Command::new(&leakmon);
        command.args(["-v", "attach", "-p", &server.tgid().to_string()]);
        let mut attached = Watched::leakmon(&mut command)?;
        attached.line_with("attached")?;
        watched.push(requests_per_second(&address)?);
        attached.end()?;
        remnants::await_end()?;
        // What ran before and what runs after: a machine that slows down all the time slows neither side alone.
        alone.push((before + requests_per_second(&address)?) / 2.0);
    }
    let ratios: Vec<f64> = watched
        .iter()
        .zip(&alone)
        .map(|(with, without)| with / without)
        .collect();
    let (Some(alone), Some(watched), Some(ratio)) = (Summary::of(&alone), Summary::of(&watched), Summary::of(&ratios))
    else {
        bail!("at least one round is needed")
    };
    Ok(format!(
        "Throughput of an HTTP echo server, {CLIENTS} clients, {REQUESTS} requests a connection, {rounds} rounds, medians\n\n\
         | | requests a second | lowest | highest |\n| --- | ---: | ---: | ---: |\n\
         | alone | {:.0} | {:.0} | {:.0} |\n| under leakmon | {:.0} | {:.0} | {:.0} |\n\
         | kept | {:.1} % | {:.1} % | {:.1} % |\n",
        alone.median,
        alone.low,
        alone.high,
        watched.median,
        watched.low,
        watched.high,
        ratio.median * 100.0,
        ratio.low * 100.0,
        ratio.high * 100.0
    ))
}

fn requests_per_second(address: &str) -> Result<f64> {
    let (answered, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let started = Instant::now();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| ask(address, &answered, &stop)))
            .collect();
        thread::sleep(WINDOW);
        stop.store(true, Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(answered.load(Relaxed) as f64 / started.elapsed().as_secs_f64())
    })
}

fn ask(address: &str, answered: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Relaxed) {
        let mut connection = Connection::open(address)?;
        for _ in 0..REQUESTS {
            let answer = connection.request("POST", "/", BODY).context("the echo server")?;
            if answer != BODY {
                bail!("the server gave back something else");
            }
            answered.fetch_add(1, Relaxed);
        }
    }
    Ok(())
}
