//! leakmon names the line that leaks tokio tasks, in a Rust binary as it is.
//!
//! # The path
//!
//! ```text
//!  /proc, ELF ──▶ targets ──▶ kernel ══uprobe══▶ leakmon-ebpf ══ring buffer══▶ kernel ──▶ live ──▶ symbols ──▶ export
//!                 where to     attach                                          receive    counts    names       table, JSON,
//!                 probe                                                                                         folded, metrics
//! ```
//!
//! 1. [`targets`] finds in the ELF image alone the static task vtables, the instructions at which a task is born, and those at
//!    which one completes, and in which register the task's header is there: a [`targets::plan::ProbePlan`].
//!    It also makes unwind tables from `.eh_frame`, or from code without it ([`targets::unwind`]), so that stacks are whole in a default
//!    release build.
//! 2. [`kernel`] attaches a BPF program to each of these *probe sites*. The programs (crate `leakmon-ebpf`) know no tokio
//!    version: all they need is in a cookie of 64 bits. They pair births with ends in the table of live tasks, and count in `COUNTS`.
//! 3. Events tell user space what changed; counters are cumulative, so a lost event loses nothing but time. Once a tick the
//!    counters themselves are read into [`live`].
//! 4. [`symbols`] turns a stack's addresses into names, on a thread of its own, and says which frame is the culprit.
//! 5. [`export`] makes a table, JSON, folded stacks or Prometheus text from one [`export::report::Report`].
//!
//! [`daemon`] is the loop and the owner of what is counted. Its search for processes (`daemon/discovery.rs`) is a second loop, on
//! a thread of its own with its own table of files, which hands over what it finds. `run`, `attach` and `daemon` (in
//! [`commands`]) differ in what ends it.
//!
//! # Code map
//!
//! | folder or file | is | knows nothing of |
//! | --- | --- | --- |
//! | `leakmon-ebpf/src/abi.rs` | THE contract with the BPF programs: cookies, keys, values, records, limits | either side |
//! | `leakmon-ebpf/src/{rows,step}.rs` | the unwind tables' layout, and the walk over them, the same code on both sides | maps, memory |
//! | `leakmon-ebpf/src/` | the BPF programs, one file a concern; `main.rs` has the entry points | runtimes, versions, names |
//! | [`analysis`] | confined children that read untrusted files for the stages | what is read |
//! | [`targets`] | WHERE to probe: images, runtimes, sites; what `/proc` says of processes | BPF |
//! | [`kernel`] | ALL BPF system calls: load, attach, ring, maps; what this host offers | what a count means |
//! | [`memory`] | reading a target's memory: states of tasks, the census | BPF, names |
//! | [`live`] | events and counters in; counts, ages and verdicts out; pure | IO, clocks, names |
//! | [`symbols`] | addresses to names, the location, the callsite's id | counts |
//! | [`export`] | one file an output format; `http` only routes | where a report came from |
//! | [`daemon`] | the loop; `daemon/assembly.rs` makes the report | the command line |
//! | `daemon/discovery.rs` | the search for processes, on its own thread | what is attached or counted |
//! | [`privileges`] | the daemon's rights: what each is for, giving up the others | BPF |
//! | [`outbound`] | requests to other servers, bounded in time and size | what they are for |
//! | [`heap`] | what becomes of memory that was freed | what it was for |
//! | [`supervision`] | what systemd is told: ready, alive, reloading | how it is known |
//! | [`commands`], [`cli`], [`config`] | what a person asks for | how it is done |
//! | `xtask/` | setup, build, demo, tests, benchmarks, tidiness | |
//!
//! The stages are declared below in the order of the path. A stage may use the data types of an earlier one, never of a later.
//!
//! # Invariants
//!
//! 1. Only `kernel` makes BPF system calls. Only `targets` and `symbols` read `/proc` and ELF files, and what a target's
//!    file says is parsed in a confined child ([`analysis`]): the daemon itself reads headers and notes. `live` has no IO and no clock.
//! 2. A scrape reads a snapshot: it never symbolises, never touches BPF, never waits for the event path.
//! 3. Every queue, table and cache has a stated bound, a counter for what it refused, and a test at the bound.
//! 4. A site is attached only if the image's bytes there are the expected instruction; leakmon never guesses an offset.
//! 5. leakmon never writes into a watched process's memory and never stops it; only `run` holds its own command and
//!    that one's descendants: at their exec until their program is analysed, at their entry point until its unwind tables are
//!    loaded, and never longer than five seconds.
//! 6. Names from a watched binary are untrusted: bounded in `symbols`, escaped in `export`.
//! 7. Everything runtime- or version-specific is a row in a table under `targets`, with the source it came from.
//!
//! Absent on purpose: there is no event a task on the ring (the daemon's cost grows with callsites, not with tasks), no return
//! probe (it would write into the target's stack), no per-process probe (filtering is done in the program).

pub mod analysis;

pub mod targets;

pub mod kernel;

pub mod memory;

pub mod live;

pub mod symbols;

pub mod export;

pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod heap;
pub mod logging;
pub mod outbound;
pub mod privileges;
pub mod self_metrics;
pub mod supervision;
