//! What a restarted daemon finds in pinned maps beside the counts: who made them, and what image numbers stand for.

#[cfg(not(target_arch = "bpf"))]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Images that can have a number at once; the cookie's bits would allow 65,536.
pub const IMAGES_ENTRIES_MAX: u32 = 1024;

/// Bytes of an image's path that are kept. A longer one is found again through a process that runs it.
pub const PATH_BYTES_MAX: usize = 1024;

layout! {
    /// Value of `META` (key: 0): who made the maps.
    pub struct Meta {
        /// [`ABI_VERSION`](super::ABI_VERSION).
        pub abi_version: u32,
        /// 1 once all maps have been made.
        pub complete: u32,
        /// Hash of the programs and of all that they were loaded with.
        pub made_by: u64,
    }
}

layout! {
    /// Value of `IMAGES` (key: image number).
    pub struct PinnedImage {
        /// `st_dev` of the file.
        pub device: u64,
        /// `st_ino` of the file.
        pub inode: u64,
        /// Hash of the probe plan: sites are known by their index in it.
        pub plan: u64,
        /// 1 where every process of the image is a target.
        pub every_process: u32,
        /// Bytes of `path`; more than there are where it was too long.
        pub path_len: u32,
        /// Where the file was found.
        pub path: [u8; PATH_BYTES_MAX],
    }
}
