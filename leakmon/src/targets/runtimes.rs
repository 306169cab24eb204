//! The runtimes that leakmon knows: one row each.
//!
//! In: an image. Out: what the runtime's own finder planned for it. Another runtime is a module beside this one and a row here.

use super::{
    image::Image,
    plan::{ProbeSite, TaskType},
    tokio,
};

/// One runtime.
pub struct Runtime {
    /// Its name in plans, reports and labels.
    pub name: &'static str,
    /// Looks for it in an image.
    pub(super) find: fn(&Image<'_>) -> Finding,
}

/// What a finder says of an image.
pub(super) enum Finding {
    /// The runtime is not in there.
    Absent,
    /// It is, and can't be followed: its version where it is known, and why.
    Unsupported { version: Option<String>, reason: String },
    /// It is, and these are its task types and sites.
    Planned(Planned),
}

/// The runtime's part of a plan.
#[derive(Default)]
pub(super) struct Planned {
    pub(super) version: Option<String>,
    pub(super) task_types: Vec<TaskType>,
    pub(super) sites: Vec<ProbeSite>,
    pub(super) problems: Vec<String>,
}

/// All runtimes, asked in this order.
pub const RUNTIMES: [Runtime; 1] = [Runtime {
    name: "tokio",
    find: tokio::find,
}];
