//! A file with a reading position of its own.
//!
//! In: an open file. Out: a reader. Processes that share a descriptor share its position too: two that seek would read each
//! other's bytes, so nobody here does.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
};

/// Reads by `pread`, from the beginning.
#[derive(Debug)]
pub struct SharedFile<'a> {
    file: &'a File,
    position: u64,
}

impl<'a> SharedFile<'a> {
    /// A reader at the beginning of `file`.
    #[must_use]
    pub const fn new(file: &'a File) -> Self {
        Self { file, position: 0 }
    }
}

impl Read for SharedFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

impl Seek for SharedFile<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(distance) => self.file.metadata()?.len().checked_add_signed(distance),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn two_readers_of_one_descriptor_do_not_disturb_each_other() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        let (mut one, mut other) = (SharedFile::new(&file), SharedFile::new(&file));
        let mut bytes = [0; 2];
        assert_eq!(one.seek(SeekFrom::End(-4)).unwrap(), 6);
        other.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"01");
        one.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"67");
        assert_eq!(one.seek(SeekFrom::Current(-8)).unwrap(), 0);
        assert!(one.seek(SeekFrom::Current(-1)).is_err());
    }
}
