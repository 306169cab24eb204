//! The contract between leakmon's BPF programs and its user space.
//!
//! On the host this library holds nothing but [`abi`]; the programs themselves are the binary target, compiled for
//! `bpfel-unknown-none` by `cargo xtask build-ebpf`.
#![no_std]

pub mod abi;
