//! The text of `/proc/PID/maps`.
//!
//! In: its lines. Out: one mapping each, by ascending address. The text is the kernel's, but for the paths, which a target chooses.

use super::{MAPS_LINE_BYTES_MAX, MAPS_LINES_MAX, Mapping};
use std::{
    ffi::OsString,
    io::{self, BufRead, Read},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

/// What may be done with a mapping's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::targets) struct Permissions {
    pub(in crate::targets) read: bool,
    pub(in crate::targets) write: bool,
    pub(in crate::targets) execute: bool,
    /// Not shared with other processes.
    pub(in crate::targets) private: bool,
}

/// Tells each mapping in the text of `maps`, by ascending address. Returns how many lines were left out.
pub(in crate::targets) fn each_mapping(
    mut text: impl BufRead,
    mut tell: impl FnMut(Mapping, Permissions),
) -> io::Result<u64> {
    let mut refused = 0;
    let mut line = Vec::new();
    for _ in 0..MAPS_LINES_MAX {
        line.clear();
        if text
            .by_ref()
            .take(MAPS_LINE_BYTES_MAX as u64)
            .read_until(b'\n', &mut line)?
            == 0
        {
            return Ok(refused);
        }
        if line.last() != Some(&b'\n') && line.len() == MAPS_LINE_BYTES_MAX {
            refused += 1;
            skip_line(&mut text)?;
            continue;
        }
        match parse_line(line.strip_suffix(b"\n").unwrap_or(&line)) {
            Some((mapping, permissions)) => tell(mapping, permissions),
            None => refused += 1,
        }
    }
    Ok(refused + u64::from(!text.fill_buf()?.is_empty()))
}

/// Drops the rest of a line that is too long to keep.
fn skip_line(text: &mut impl BufRead) -> io::Result<()> {
    loop {
        let buffer = text.fill_buf()?;
        if buffer.is_empty() {
            return Ok(());
        }
        let newline = buffer.iter().position(|byte| *byte == b'\n');
        let used = newline.map_or(buffer.len(), |at| at + 1);
        text.consume(used);
        if newline.is_some() {
            return Ok(());
        }
    }
}

/// One line, without its newline: `start-end perms offset major:minor inode path` (fs/proc/task_mmu.c,
/// show_map_vma). The path is all that follows the inode and its padding.
pub(super) fn parse_line(line: &[u8]) -> Option<(Mapping, Permissions)> {
    let (range, rest) = split_field(line)?;
    let (permissions, rest) = split_field(rest)?;
    let (offset, rest) = split_field(rest)?;
    let (device, rest) = split_field(rest)?;
    let (inode, rest) = split_field(rest)?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    let (major, minor) = device.split_once(':')?;
    let inode = inode.parse().ok()?;
    let padding = rest.iter().position(|byte| *byte != b' ').unwrap_or(rest.len());
    let shown = &rest[padding..];
    let undeleted = shown.strip_suffix(b" (deleted)").filter(|_| inode != 0);
    let mapping = Mapping {
        start,
        end,
        file_offset: hexadecimal(offset)?,
        device: nix::sys::stat::makedev(hexadecimal(major)?, hexadecimal(minor)?),
        inode,
        path: PathBuf::from(OsString::from_vec(unescape(undeleted.unwrap_or(shown)))),
        deleted: undeleted.is_some(),
    };
    let letter = |index: usize, letter: u8| permissions.as_bytes().get(index).map(|found| *found == letter);
    let permissions = Permissions {
        read: letter(0, b'r')?,
        write: letter(1, b'w')?,
        execute: letter(2, b'x')?,
        private: letter(3, b'p')?,
    };
    (start < end).then_some((mapping, permissions))
}

/// The text up to the next space, and what follows that space.
fn split_field(line: &[u8]) -> Option<(&str, &[u8])> {
    let end = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    let field = std::str::from_utf8(&line[..end])
        .ok()
        .filter(|field| !field.is_empty())?;
    Some((field, line.get(end + 1..).unwrap_or_default()))
}

/// A number of hexadecimal digits alone; `from_str_radix` would take a sign too.
fn hexadecimal(digits: &str) -> Option<u64> {
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
    u64::from_str_radix(digits, 16).ok()
}

/// Undoes the kernel's one escape in a path of `maps`: newline as `\012` (`seq_path(m, path, "\n")`). A backslash
/// itself is not escaped, so a name that really holds `\012` reads as a newline: the path alone never decides what is
/// opened.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match rest.strip_prefix(br"\012") {
            Some(after) => {
                bytes.push(b'\n');
                rest = after;
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}
