//! How bytes and open files are passed between processes.
//!
//! In: bytes, files. Out: the same on the other side. Answers go over a stream, each with its length before it; orders to the
//! zygote are packets, with files as control messages (`SCM_RIGHTS`, unix(7)).

use super::process;
use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

/// Files handed over at once: the child's socket, an image and its debug file.
pub(super) const FILES_MAX: usize = 3;
/// Bytes of one packet.
const PACKET_BYTES_MAX: usize = 512;

/// What the daemon tells the zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order<'a> {
    /// Fork a child for this job. The first file is its socket.
    Begin {
        /// Name of the job.
        job: &'a str,
    },
    /// Kill and reap this child.
    End {
        /// The child.
        pid: i32,
    },
}

/// What the zygote answers.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Report {
    /// The child runs.
    Begun {
        /// Its number.
        pid: i32,
    },
    /// There is no child.
    NotBegun {
        /// Why.
        reason: String,
    },
    /// The child has gone.
    Ended {
        /// `wait4`'s status.
        status: i32,
        /// The most memory it ever had, in bytes.
        peak_bytes: u64,
    },
}

/// Sends a packet.
pub(super) fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, files: &[RawFd]) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let rights = [ControlMessage::ScmRights(files)];
    let control = if files.is_empty() { &[][..] } else { &rights };
    let slices = [IoSlice::new(&bytes)];
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a packet with its files; `None` where the other side is gone.
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = [0; PACKET_BYTES_MAX];
    let (len, files) = receive_into(socket, &mut bytes)?;
    let Some(packet) = bytes.get(..len).filter(|packet| !packet.is_empty()) else {
        return Ok(None);
    };
    Ok(Some((postcard::from_bytes(packet).map_err(io::Error::other)?, files)))
}

/// As [`receive`], for a packet that borrows from `bytes`.
pub(super) fn receive_into(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = cmsg_space!([RawFd; FILES_MAX]);
    let mut slices = [IoSliceMut::new(bytes)];
    let received = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let mut files = Vec::new();
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = message {
            files.extend(descriptors.into_iter().map(process::own));
        }
    }
    Ok((received.bytes, files))
}

/// Bytes of a packet's buffer.
pub(super) const fn packet() -> [u8; PACKET_BYTES_MAX] {
    [0; PACKET_BYTES_MAX]
}

/// Writes bytes with their length before them.
pub(super) fn write_frame(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    to.write_all(&len.to_le_bytes())?;
    to.write_all(bytes)
}

/// Reads what [`write_frame`] wrote; an error where it is longer than `max`, before memory is taken for it.
pub(super) fn read_frame(from: &mut impl Read, max: usize) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    from.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // It grows as bytes come, so a length alone costs nothing.
    let mut bytes = Vec::new();
    from.take(len as u64).read_to_end(&mut bytes)?;
    match bytes.len() == len {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_is_refused_at_its_bound_and_cut_ones_are_errors() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, b"answer").unwrap();
        assert_eq!(read_frame(&mut &bytes[..], 6).unwrap(), b"answer");
        assert_eq!(
            read_frame(&mut &bytes[..], 5).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        for len in 0..bytes.len() {
            assert_eq!(
                read_frame(&mut &bytes[..len], 6).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{len}"
            );
        }
    }

    proptest! {
        #[test]
        fn frames_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = Vec::new();
            write_frame(&mut framed, &bytes).unwrap();
            prop_assert_eq!(read_frame(&mut &framed[..], 200).unwrap(), bytes);
        }
    }
}
