//! Children that read untrusted files, so that whatever a file says costs a child and not the daemon.
//!
//! In: open files, and requests. Out: answers, or one sentence that says why there is none ([`Failure`]). It knows nothing of
//! what is analysed: the stages behind it each bring their [`Job`]s.
//!
//! ```text
//!  daemon ──[Analyst]── begin, end ──▶ zygote ──fork──▶ child: start the job, confine, answer until told to stop
//!     └──────────────── requests, answers ───────────────▶┘
//! ```
//!
//! The zygote is leakmon's own executable, started anew with nothing but a socket (`zygote`). Each child gets open files, does
//! what needs rights before it looks at them, and gives up everything (`confinement`): memory, processor time, files,
//! sockets, capabilities. It is killed when it takes too long. What it answers is untrusted as well: bounded here, checked by
//! the stage that asked. Each failure is counted once and remembered: the same file is not analysed by that job again.
//!
//! | file | is |
//! | --- | --- |
//! | `job` | what a child does, and what it may cost |
//! | `analyst` | the daemon's side |
//! | `zygote`, `process` | what forks, kills and reaps |
//! | `confinement` | what a child gives up |
//! | `message` | how bytes and files are passed |
//! | `self_test` | the job that tries to do what no child may |

mod analyst;
mod confinement;
mod failure;
mod job;
mod message;
mod process;
pub mod self_test;
mod shared_file;
mod zygote;

pub use analyst::{Analyst, AnalystCounts, Child, FAILURES_REMEMBERED_MAX};
pub use confinement::Confinement;
pub use failure::{Failure, Outcome};
pub use job::{Job, Work, answering};
pub use shared_file::SharedFile;
pub use zygote::{ZYGOTE_NAME, serve};
