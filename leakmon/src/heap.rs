//! What becomes of memory that was freed.
//!
//! In: nothing. Out: an allocator that gives large blocks back to the system as soon as they are freed. A census of a million
//! tasks, or an analysis, takes much for a moment; the daemon beside its targets should not keep it. It allocates nothing itself.

/// Bytes from which on a block is a mapping of its own (`M_MMAP_THRESHOLD` in mallopt(3)). glibc begins with half of it and,
/// unless it is set, follows the largest block that was ever freed, up to 32 MiB: what was freed below that stays with the
/// process.
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: libc::c_int = 256 << 10;

/// Has the allocator return large blocks. To be called before there are threads; other C libraries do so by themselves.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: it takes two numbers, and nobody allocates at the same time.
        let _refused = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES) };
    }
}
