//! WHERE to probe: processes, ELF images, runtimes, probe sites. No BPF in here.

pub mod plan;
pub mod unwind;
