//! leakmon names the line that leaks tokio tasks in an unmodified Rust binary.

pub mod targets;

pub mod kernel;

pub mod live;

pub mod symbols;

pub mod export;

pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod self_metrics;
