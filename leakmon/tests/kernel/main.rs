//! Real probes on real victims: what leakmon counts against the victims' own record.
//!
//! These tests need root and the victims as builds of several kinds; `cargo xtask test` sees to both. Where the machine forbids
//! BPF, or a victim is not built, a test is skipped by name and counted (see [`host`]).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod browser;
mod census;
mod containers;
mod counts;
mod crowd;
mod daemon;
mod depth;
mod descendants;
mod discovery;
mod harm;
mod host;
mod life;
mod lines;
mod observer;
mod outputs;
mod overload;
mod page;
mod pause;
mod pods;
mod progress;
mod prometheus;
mod refusals;
mod restart;
mod service;
mod slow_clients;
mod states;
mod storm;
mod terminal;
mod threads;
mod top;
mod truth;
mod verdicts;
mod victim;
mod wrappers;
