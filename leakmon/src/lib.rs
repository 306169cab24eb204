//! leakmon names the line that leaks tokio tasks in an unmodified Rust binary.

pub mod export;
pub mod self_metrics;
pub mod symbols;
pub mod targets;
