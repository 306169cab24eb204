//! The event ring.
//!
//! In: the BPF programs' records. Out: [`Event`]s, a bounded number at a time, so that a flood can't starve the caller's loop.

use super::{event::Event, load::KernelError, recording::Recorder};
use aya::maps::{MapData, RingBuf};
use std::os::fd::AsFd;
use tokio::io::{Interest, unix::AsyncFd};

/// Most events of one [`EventRing::drain`].
pub const DRAIN_MAX: usize = 4096;

/// The reading end of the ring.
pub struct EventRing {
    ring: AsyncFd<Ring>,
    /// Records that were no event of this version.
    unknown: u64,
    recorder: Option<Recorder>,
}

struct Ring(RingBuf<MapData>);

impl std::os::fd::AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl EventRing {
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, KernelError> {
        // SAFETY: the ring owns its map's descriptor and returns the same one until it is dropped.
        let registered = unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) };
        let ring = registered.map_err(|error| KernelError::Ring(error.into()))?;
        Ok(Self {
            ring,
            unknown: 0,
            recorder: None,
        })
    }

    /// Waits until there is something to read. Safe to drop half-way.
    ///
    /// # Errors
    /// Where the reactor is gone.
    pub async fn readable(&self) -> std::io::Result<()> {
        self.ring.readable().await?.clear_ready();
        Ok(())
    }

    /// Hands what is in the ring to `take`, at most [`DRAIN_MAX`] events. Returns whether the ring is empty now.
    pub fn drain(&mut self, mut take: impl FnMut(Event)) -> bool {
        let ring = &mut self.ring.get_mut().0;
        for _ in 0..DRAIN_MAX {
            let Some(bytes) = ring.next() else {
                return true;
            };
            if let Some(recorder) = &mut self.recorder {
                recorder.event(&bytes);
            }
            match Event::parse(&bytes) {
                Some(event) => take(event),
                None => self.unknown += 1,
            }
        }
        false
    }

    /// Records all that is read from now on.
    pub fn record(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// The recording, where there is one.
    pub fn recorder(&mut self) -> Option<&mut Recorder> {
        self.recorder.as_mut()
    }

    /// How many records were no event of this version.
    #[must_use]
    pub const fn unknown(&self) -> u64 {
        self.unknown
    }
}
