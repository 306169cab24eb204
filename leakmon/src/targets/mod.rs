//! WHERE to probe: processes, ELF images, runtimes, probe sites. No BPF in here.
//!
//! In: the path of an ELF file. Out: a [`plan::ProbePlan`], from the image alone. It opens nothing but that file, and runs
//! nothing; a confined child reads it ([`crate::analysis`]). `processes` and `memory_map` read `/proc`, `unwind` makes the tables
//! for walking stacks.
//!
//! | file | knows |
//! | --- | --- |
//! | `identity`, `cgroup`, `rules` | who a process is, in which container, and whether it is wanted |
//! | `opening` | how to open a file without being held up, and what to say where there is no plan |
//! | `jobs` | what children are asked, and what of their answers is believed |
//! | `image` | ELF: loaded bytes, relocated words, functions, symbols |
//! | `references` | which code names an address |
//! | `code`, `flow` | x86-64: instructions, and what the registers hold |
//! | `runtimes` | the table of runtimes, each with its finder |
//! | `tokio` | the only one so far |

pub mod cgroup;
pub mod identity;
pub mod memory_map;
pub mod permission;
pub mod plan;
pub mod processes;
pub mod rules;
pub mod runtimes;
pub mod unwind;

mod code;
mod flow;
mod image;
mod jobs;
mod opening;
mod references;
mod tokio;

pub use jobs::{PLAN, TableError, UNWIND_TABLE, analyse, analyse_path, unwind_table};
pub use opening::{AnalyseError, analyse_bytes, open};
