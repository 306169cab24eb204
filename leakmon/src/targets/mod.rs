//! WHERE to probe: processes, ELF images, runtimes, probe sites. No BPF in here.

pub mod plan;
pub mod processes;
pub mod unwind;
