//! Whether two open files are one to the kernel's probes.
//!
//! In: two open files. Out: yes, no, or that it can't be known. A probe hangs on the inode that backs a file. Two overlay mounts
//! of one lower file show two devices and perhaps two inode numbers, yet a probe through either path fires in the processes of
//! both, and two probes would count everything twice. What such files do share is the page cache: a page of one is, in physical
//! memory, the page of the other.
//!
//! Sources: `kernel/trace/trace_uprobe.c` and `kernel/events/core.c` (`d_real_inode`), `fs/overlayfs/file.c` (`ovl_mmap` maps the
//! real file), `Documentation/admin-guide/mm/pagemap.rst`.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    ptr::NonNull,
};

/// `/proc/PID/pagemap`: bits 0–54 are the page's frame number, bit 63 says that it is there. The number is 0 without
/// `CAP_SYS_ADMIN`.
const FRAME_MASK: u64 = (1 << 55) - 1;
const PRESENT: u64 = 1 << 63;

/// Comparisons that are tried: the kernel may move a page between two looks at it, but hardly three times in a row.
const TRIES: usize = 3;

/// Whether the files are backed by one inode, told by the page at `offset` of each. `None` where it can't be known.
#[must_use]
pub fn is_same_inode(one: &File, other: &File, offset: u64) -> Option<bool> {
    let (one, other) = (Page::map(one, offset).ok()?, Page::map(other, offset).ok()?);
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    for _ in 0..TRIES {
        let before = one.frame(&pagemap)?;
        let compared = other.frame(&pagemap)?;
        if before == one.frame(&pagemap)? {
            return Some(before == compared);
        }
    }
    None
}

/// One page of a file, mapped for reading and never read: a file that shrinks meanwhile would end this process by a signal.
struct Page {
    address: NonNull<libc::c_void>,
    bytes: usize,
}

impl Page {
    fn map(file: &File, offset: u64) -> io::Result<Self> {
        // SAFETY: asks for a number.
        let bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(offset / bytes as u64 * bytes as u64).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping at an address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address).ok_or_else(|| io::Error::other("the kernel mapped address 0"))?;
        let page = Self { address, bytes };
        // Brings the page in as a read would, but where there is none any more it fails instead of sending SIGBUS (madvise(2),
        // Linux 5.14).
        // SAFETY: the range is the mapping just made.
        let populated = unsafe { libc::madvise(page.address.as_ptr(), page.bytes, libc::MADV_POPULATE_READ) };
        if populated != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(page)
    }

    /// Number of the frame in physical memory that holds the page.
    fn frame(&self, pagemap: &File) -> Option<u64> {
        let mut entry = [0; 8];
        let index = self.address.as_ptr() as u64 / self.bytes as u64;
        pagemap.read_exact_at(&mut entry, index * 8).ok()?;
        let entry = u64::from_ne_bytes(entry);
        let frame = entry & FRAME_MASK;
        (entry & PRESENT != 0 && frame != 0).then_some(frame)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; nothing refers to it.
        unsafe { libc::munmap(self.address.as_ptr(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_itself_under_any_name_and_a_copy_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, copy] = ["file", "link", "copy"].map(|name| folder.path().join(name));
        std::fs::write(&file, vec![7; 10_000]).unwrap();
        std::fs::hard_link(&file, &link).unwrap();
        std::fs::copy(&file, &copy).unwrap();
        let [file, link, copy] = [file, link, copy].map(|path| File::open(path).unwrap());
        let root = nix::unistd::geteuid().is_root();
        for (other, expected) in [(&file, true), (&link, true), (&copy, false)] {
            for offset in [0, 5_000, 9_999] {
                let found = is_same_inode(&file, other, offset);
                assert_eq!(found, root.then_some(expected), "at {offset}");
            }
        }
        // Beyond the end there is no page, and no signal either.
        assert_eq!(is_same_inode(&file, &link, 100_000), None);
    }
}
