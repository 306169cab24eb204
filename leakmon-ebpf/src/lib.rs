//! The contract between leakmon's BPF programs and its user space.
//!
//! On the host this library holds [`abi`], the layout of unwind tables in [`rows`] and the walk over them in [`step`];
//! the programs themselves are the binary target, compiled for `bpfel-unknown-none` by `cargo xtask build-ebpf`.
#![no_std]

pub mod abi;
pub mod rows;
pub mod step;
