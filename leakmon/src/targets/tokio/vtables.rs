//! tokio's static task vtables: one for each pair of a future type and a scheduler.
//!
//! In: an image. Out: the vtables in it, by ascending address, and what they say of the task's memory. It looks at data only;
//! `births` asks that code takes a vtable's address.

use super::super::image::Image;
use leakmon_ebpf::abi::Kind;

/// How a range of tokio versions lays out `Vtable` and `Header`.
pub(super) struct Shape {
    /// Function pointers at the vtable's start.
    functions: usize,
    /// The functions from which the drop glue of the task can be reached.
    pub(super) naming: &'static [usize],
    /// Which function is `poll`.
    pub(super) poll: usize,
    /// Which is `schedule`.
    pub(super) schedule: usize,
    /// Where the pointer to the vtable is in `Header`.
    pub(super) vtable_offset: u64,
    /// Sizes of `Trailer`.
    pub(super) trailer_bytes: &'static [u64],
    /// Smallest `Header`.
    header_bytes: u64,
    /// Versions inspected.
    pub(super) versions: &'static str,
}

/// The known shapes.
///
/// The offsets of trailer, scheduler and id follow the functions. With `tokio_unstable` a fourth integer follows them (since
/// 1.46), which is not needed here.
pub(super) const SHAPES: [Shape; 1] = [
    // tokio 1.23.1, 1.38.0, 1.54.1, `runtime/task/raw.rs` (`Vtable`: poll, schedule, dealloc, try_read_output,
    // drop_join_handle_slow, drop_abort_handle, shutdown) and `runtime/task/core.rs` (`Header`: state, queue_next, vtable,
    // owner_id).
    Shape {
        functions: 7,
        naming: &[2, 6, 4, 3, 0],
        poll: 0,
        schedule: 1,
        vtable_offset: 0x10,
        // A list's two pointers and a waker of two words (1.23.1, 1.38.0), and a hook of two words more (1.54.1).
        trailer_bytes: &[0x20, 0x30],
        header_bytes: 0x20,
        versions: "1.23 to 1.54",
    },
];

/// Most vtables of an image; the largest program tried has some 1,200.
pub(super) const VTABLES_MAX: usize = 1 << 16;
/// Scheduler and id are within this of the header and of each other; the alignment of the future moves them.
const SCHEDULER_OFFSET_MAX: u64 = 0x1000;
const SCHEDULER_BYTES_MAX: u64 = 0x100;
/// Futures are smaller than this.
const TRAILER_OFFSET_MAX: u64 = 1 << 30;
/// `Arc<Handle>`, the scheduler of every task that is not blocking.
const ARC_BYTES: u64 = 8;

/// One vtable.
#[derive(Clone, Debug)]
pub(super) struct Vtable {
    pub(super) address: u64,
    /// Its functions, as many as the shape has.
    pub(super) functions: Vec<u64>,
    pub(super) trailer_offset: u64,
    pub(super) scheduler_offset: u64,
    pub(super) id_offset: u64,
}

impl Vtable {
    /// `BlockingSchedule` (`runtime/blocking/schedule.rs`) is empty or a handle with its tag; every other scheduler is an `Arc`.
    pub(super) fn kind(&self) -> Kind {
        if self.id_offset - self.scheduler_offset == ARC_BYTES {
            Kind::Task
        } else {
            Kind::Blocking
        }
    }

    fn read(image: &Image<'_>, shape: &Shape, address: u64, functions: Vec<u64>) -> Option<Self> {
        let integer = |index: u64| image.plain_word(address + 8 * (shape.functions as u64 + index));
        let [trailer_offset, scheduler_offset, id_offset] = [integer(0)?, integer(1)?, integer(2)?];
        let aligned = [trailer_offset, scheduler_offset, id_offset]
            .iter()
            .all(|offset| offset % 8 == 0);
        let ordered = (shape.header_bytes..=SCHEDULER_OFFSET_MAX).contains(&scheduler_offset)
            && (scheduler_offset..=scheduler_offset + SCHEDULER_BYTES_MAX).contains(&id_offset)
            && (id_offset + 8..TRAILER_OFFSET_MAX).contains(&trailer_offset);
        (aligned && ordered).then_some(Self {
            address,
            functions,
            trailer_offset,
            scheduler_offset,
            id_offset,
        })
    }
}

/// All words that look like the start of a vtable of this shape.
pub(super) fn scan(image: &Image<'_>, shape: &Shape) -> Vec<Vtable> {
    let mut found = Vec::new();
    for window in image.words.windows(shape.functions) {
        let address = window[0].0;
        let consecutive = window
            .iter()
            .enumerate()
            .all(|(index, word)| word.0 == address + 8 * index as u64);
        if !consecutive || image.is_code(address) || !window.iter().all(|word| image.is_code(word.1)) {
            continue;
        }
        let functions = window.iter().map(|word| word.1).collect();
        if let Some(vtable) = Vtable::read(image, shape, address, functions) {
            found.push(vtable);
        }
        if found.len() >= VTABLES_MAX {
            break;
        }
    }
    found
}
