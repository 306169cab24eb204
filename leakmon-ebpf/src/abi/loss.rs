//! What the programs could not do, by reason.

/// What went wrong in a program; index into `LOSS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Loss {
    /// An event found no room in the ring.
    RingFull = 0,
    /// The task's place was taken, and `LIVE` and `LIVE_MORE` were full: the birth is untracked.
    LiveFull = 1,
    /// `STACKS` was full: the birth is counted under its site alone.
    StacksFull = 2,
    /// `COUNTS` was full: the birth is untracked.
    CountsFull = 3,
    /// `TARGETS` or `TOTALS` was full: the hit is not counted at all.
    TargetsFull = 4,
    /// No scratch memory was free on this processor: the stack has the site alone.
    ScratchBusy = 5,
    /// A walk ended where a frame pointer led nowhere.
    WalkFramePointer = 6,
    /// A walk could not read the stack.
    WalkBadRead = 7,
    /// A walk had more than [`FRAMES_MAX`](super::FRAMES_MAX) frames.
    WalkTooDeep = 8,
    /// A walk met code without a table.
    WalkNoTable = 9,
    /// A walk met a rule that can't be expressed.
    WalkUnsupported = 10,
    /// The target was paused: the birth is untracked.
    Paused = 11,
    /// `WATCHED` was full: a descendant is not followed.
    WatchedFull = 12,
}

impl Loss {
    /// All reasons, in index order.
    pub const ALL: [Self; 13] = [
        Self::RingFull,
        Self::LiveFull,
        Self::StacksFull,
        Self::CountsFull,
        Self::TargetsFull,
        Self::ScratchBusy,
        Self::WalkFramePointer,
        Self::WalkBadRead,
        Self::WalkTooDeep,
        Self::WalkNoTable,
        Self::WalkUnsupported,
        Self::Paused,
        Self::WatchedFull,
    ];

    /// Reasons for which a walk ends before the thread's start; the stack is stored as far as it is known.
    pub const WALKS: [Self; 5] = [
        Self::WalkFramePointer,
        Self::WalkBadRead,
        Self::WalkTooDeep,
        Self::WalkNoTable,
        Self::WalkUnsupported,
    ];
}
