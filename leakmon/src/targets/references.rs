//! Which code names an address: a scan of all code for 32-bit distances that lead to one of a few addresses; in a
//! position-dependent image also for the addresses themselves.
//!
//! In: an image and the addresses. Out: places in the code where a distance to one of them (or one of them) seems to be. Machine
//! code has no marks, so a place may be a chance match: the caller decodes the function around it.

use super::image::Image;

/// Most places; hostile code may consist of nothing else.
const PLACES_MAX: usize = 1 << 20;
/// Bits of the filter before the exact search.
const FILTER_BITS: u32 = 16;

/// A place in the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Address of the distance; it is within the instruction that uses it.
    pub(super) place: u64,
    /// What it leads to.
    pub(super) target: u64,
}

/// All references to the targets, by ascending place. The distance is reckoned from its own end, as in `lea reg, [rip + d]`,
/// `mov reg, [rip + d]`, `call [rip + d]`, `call d` and `jmp d`. Position-dependent code also has `mov reg, ADDRESS`.
pub(super) fn references(image: &Image<'_>, targets: &[u64]) -> Vec<Reference> {
    let mut targets = targets.to_vec();
    targets.sort_unstable();
    let (Some(first), Some(last)) = (targets.first().copied(), targets.last().copied()) else {
        return Vec::new();
    };
    let mut filter = vec![false; 1 << FILTER_BITS];
    for target in &targets {
        filter[hash(*target)] = true;
    }
    let mut found = Vec::new();
    for segment in image.segments.iter().filter(|segment| segment.executable) {
        for (index, window) in segment.data.windows(4).enumerate() {
            let distance = i32::from_le_bytes([window[0], window[1], window[2], window[3]]);
            let place = segment.address + index as u64;
            let is_target = |target: &u64| {
                (first..=last).contains(target) && filter[hash(*target)] && targets.binary_search(target).is_ok()
            };
            let near = Some((place + 4).wrapping_add_signed(i64::from(distance))).filter(is_target);
            let absolute = (!image.position_independent).then(|| u64::from(distance.cast_unsigned()));
            if let Some(target) = near.or(absolute.filter(is_target)) {
                found.push(Reference { place, target });
                if found.len() >= PLACES_MAX {
                    return found;
                }
            }
        }
    }
    found
}

fn hash(address: u64) -> usize {
    // Vtables are multiples of 8, functions mostly of 16.
    ((address >> 3) & ((1 << FILTER_BITS) - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_trying_every_place(
            code in proptest::collection::vec(0_u8..4, 0..200),
            targets in proptest::collection::vec(0x1000_u64..0x0500_0000, 0..20),
            near in proptest::collection::vec(0x0f00_u64..0x1200, 0..20),
        ) {
            let image = Image::of_code(0x1000, &code, &[]);
            let targets: Vec<u64> = targets.into_iter().chain(near).collect();
            let mut naive = Vec::new();
            for index in 0..code.len().saturating_sub(3) {
                let distance = i32::from_le_bytes(code[index..index + 4].try_into().unwrap());
                let place = 0x1000 + index as u64;
                let target = (place as i64 + 4 + i64::from(distance)) as u64;
                if targets.contains(&target) {
                    naive.push(Reference { place, target });
                }
            }
            prop_assert_eq!(references(&image, &targets), naive);
        }
    }

    #[test]
    fn places_are_bounded() {
        // Distances of zero: each place leads to its own end.
        let code = vec![0; PLACES_MAX + 100];
        let image = Image::of_code(0x1000, &code, &[]);
        let targets: Vec<u64> = (0..code.len() as u64).map(|index| 0x1004 + index).collect();
        assert_eq!(references(&image, &targets).len(), PLACES_MAX);
    }
}
