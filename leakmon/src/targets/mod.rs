//! WHERE to probe: processes, ELF images, runtimes, probe sites. No BPF in here.
//!
//! In: the path of an ELF file. Out: a [`ProbePlan`], from the image alone. It opens nothing but that file, and runs nothing.

pub mod plan;
pub mod processes;
pub mod runtimes;

mod code;
mod flow;
mod image;
mod opening;
mod references;
mod tokio;

pub use opening::{AnalyseError, analyse, analyse_bytes};
