//! What is read at a place that may be a task.
//!
//! In: places, and bytes that were read already, or the process. Out: a [`Reading`] of each place whose words can be a task's.

use super::{
    header::{Neighbours, Reading},
    layout::{Layout, Layouts},
    reader::{Memory, MemoryError},
};
use leakmon_ebpf::abi::Kind;

/// Places that are read in one go, so that the pieces' addresses take little memory.
pub(super) const PLACES_AT_ONCE: usize = 4096;

/// What may be a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    /// Address of the header.
    pub(super) header: u64,
    /// Index in [`Layouts::types`].
    pub(super) layout: u32,
}

/// The two pieces of a place of this type, its words up to the task id and the list's pointers, from `bytes`, which were read at
/// `address`; `None` where they do not hold both.
pub(super) fn pieces_within<'a>(
    layout: &Layout,
    place: Place,
    address: u64,
    bytes: &'a [u8],
) -> Option<(&'a [u8], &'a [u8])> {
    let [head, tail] = [layout.head(place.header), layout.tail(place.header)].map(|piece| {
        let start = usize::try_from(piece.address.checked_sub(address)?).ok()?;
        bytes.get(start..start.checked_add(piece.len as usize)?)
    });
    Some((head?, tail?))
}

/// What the two pieces of a place say; `None` where they can't be a task's.
pub(super) fn reading(layouts: &Layouts, layout: &Layout, head: &[u8], tail: &[u8]) -> Option<Reading> {
    let reading = Reading::parse(head, layouts.vtable_offset, layout)?;
    let neighbours = Neighbours::parse(tail)?;
    let listed = match layout.kind {
        // A blocking task is in no list, and nor is a task that has ended.
        Kind::Blocking => true,
        _ => reading.state.is_alive() || neighbours.is_alone(),
    };
    listed.then_some(Reading { neighbours, ..reading })
}

/// Reads places, in any order.
pub(super) fn read(
    memory: &mut Memory,
    layouts: &Layouts,
    places: &[Place],
) -> Result<Vec<Option<Reading>>, MemoryError> {
    let mut readings = Vec::with_capacity(places.len());
    for batch in places.chunks(PLACES_AT_ONCE) {
        readings.extend(read_batch(memory, layouts, batch)?);
    }
    Ok(readings)
}

fn read_batch(memory: &mut Memory, layouts: &Layouts, places: &[Place]) -> Result<Vec<Option<Reading>>, MemoryError> {
    let layout_of = |index: usize| layouts.types().get(places[index].layout as usize);
    let mut pieces = Vec::with_capacity(2 * places.len());
    for (index, place) in places.iter().enumerate() {
        if let Some(layout) = layout_of(index) {
            pieces.push((layout.head(place.header), index, true));
            pieces.push((layout.tail(place.header), index, false));
        }
    }
    pieces.sort_unstable();
    let addresses: Vec<_> = pieces.iter().map(|(piece, _, _)| *piece).collect();
    // Whichever of the two comes first waits for the other.
    let mut waiting: Vec<Option<Vec<u8>>> = vec![None; places.len()];
    let mut readings = vec![None; places.len()];
    memory.read_pieces(&addresses, |piece, bytes| {
        let (_, index, is_head) = pieces[piece];
        let (Some(layout), Some(bytes)) = (layout_of(index), bytes) else {
            return;
        };
        readings[index] = match (waiting[index].take(), is_head) {
            (Some(other), true) => reading(layouts, layout, bytes, &other),
            (Some(other), false) => reading(layouts, layout, &other, bytes),
            (None, _) => {
                waiting[index] = Some(bytes.to_vec());
                None
            }
        };
    })?;
    Ok(readings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::layout::tests::layouts;

    #[test]
    fn both_pieces_lie_within_the_bytes_or_none_is_taken() {
        let layouts = layouts(8);
        let layout = &layouts.types()[0];
        let bytes = vec![7; 0x100];
        let lengths = |header| {
            let place = Place { header, layout: 0 };
            pieces_within(layout, place, 0x1000, &bytes).map(|(head, tail)| (head.len(), tail.len()))
        };
        // The trailer lies 0x80 behind the header, and 16 bytes of it are wanted.
        for (header, expected) in [
            (0x1000, Some((0x30, 16))),
            (0x1070, Some((0x30, 16))),
            (0x1078, None),
            (0x0ff8, None),
            (0x2000, None),
            (u64::MAX, None),
        ] {
            assert_eq!(lengths(header), expected, "{header:#x}");
        }
    }
}
