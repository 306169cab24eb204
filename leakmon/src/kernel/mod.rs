//! ALL BPF system calls: loading, attaching, the event ring, the maps.
//!
//! In: probe plans from `targets`, and what the BPF programs left in their maps. Out: [`event::Event`]s and counters, as
//! plain data. It decides nothing: which process is watched, what a count means and when to look is said by the caller.

pub mod attach;
pub mod btf;
pub mod clock;
pub mod code_mappings;
pub mod detach;
pub mod event;
mod exclusion;
pub mod host;
pub mod images;
pub mod load;
pub mod object;
pub mod page_cache;
pub mod pins;
pub mod recording;
pub mod ring;
pub mod sample;
pub mod settings;
mod sweep;
pub mod tables;
pub mod threads;
pub mod unwind;

pub use load::{Kernel, KernelError};
pub use settings::Settings;
