//! leakmon names the line that leaks tokio tasks in an unmodified Rust binary.

pub mod live;
pub mod export;
pub mod self_metrics;
pub mod cli;
pub mod config;
pub mod targets;
pub mod kernel;
