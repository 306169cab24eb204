//! One file an output format; `http` only routes.

pub mod report;
