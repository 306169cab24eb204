//! Rows compared with what `gimli` finds for an address through `.eh_frame_hdr`, another way to the same entries.

use gimli::{BaseAddresses, CfaRule, EhFrame, EhFrameHdr, EndianSlice, LittleEndian, RegisterRule, UnwindContext};
use gimli::{UnwindSection, UnwindTableRow, X86_64};
use leakmon_ebpf::rows::{FRAME_POINTER_LOST, FRAME_POINTER_SAME, Row, kind};
use object::{Object, ObjectSection};

use super::super::arena::Arena;
use super::super::{SegmentRows, UnwindTable};
use super::{assert_consistent, own_images, packed_row_at, row_at};

fn assert_same_rule(row: Row, truth: &UnwindTableRow<usize>, at: u64) {
    let offset = i64::from(row.offset) * 8;
    let expected = match row.kind {
        kind::STACK_POINTER => CfaRule::RegisterAndOffset {
            register: X86_64::RSP,
            offset,
        },
        kind::FRAME_POINTER => CfaRule::RegisterAndOffset {
            register: X86_64::RBP,
            offset,
        },
        kind::END => {
            assert_eq!(truth.register(X86_64::RA), RegisterRule::Undefined, "{at:#x}");
            return;
        }
        kind::LINKAGE | kind::SIGNAL => {
            assert!(matches!(truth.cfa(), CfaRule::Expression(_)), "{at:#x}");
            return;
        }
        kind::UNSUPPORTED => return,
        other => panic!("kind {other} at {at:#x}, which has an entry"),
    };
    assert_eq!(*truth.cfa(), expected, "{at:#x}");
    assert_eq!(truth.register(X86_64::RA), RegisterRule::Offset(-8), "{at:#x}");
    let saved = truth.register(X86_64::RBP);
    match row.frame_pointer {
        FRAME_POINTER_SAME => assert!(
            matches!(saved, RegisterRule::Undefined | RegisterRule::SameValue),
            "{at:#x}"
        ),
        FRAME_POINTER_LOST => assert!(
            !matches!(saved, RegisterRule::Undefined | RegisterRule::SameValue),
            "{at:#x}"
        ),
        slot => assert_eq!(saved, RegisterRule::Offset(-8 * i64::from(slot)), "{at:#x}"),
    }
}

/// Bytes between two addresses that are looked at; prime, so that all places in a page are met.
const STEP: usize = 37;

/// Checks every `stride`th address; returns how many had an entry, and how many of those a rule that is not supported.
fn compare(bytes: &[u8], table: &UnwindTable, segment: &SegmentRows, page: u32, arena: &Arena) -> (usize, usize) {
    let file = object::File::parse(bytes).unwrap();
    let section = |name| {
        file.section_by_name(name)
            .map(|section| (section.address(), section.data().unwrap()))
    };
    let (entries_address, entries) = section(".eh_frame").unwrap();
    let (index_address, index) = section(".eh_frame_hdr").unwrap();
    let bases = BaseAddresses::default()
        .set_eh_frame(entries_address)
        .set_eh_frame_hdr(index_address);
    let parsed = EhFrameHdr::new(index, LittleEndian).parse(&bases, 8).unwrap();
    let (search, section) = (parsed.table().unwrap(), EhFrame::new(entries, LittleEndian));
    let find = |at, context: &mut UnwindContext<usize>| {
        let common = EhFrame::<EndianSlice<'_, LittleEndian>>::cie_from_offset;
        search
            .unwind_info_for_address(&section, &bases, context, at, common)
            .cloned()
    };
    let mut context = UnwindContext::new();
    let (mut covered, mut unsupported, mut reckoned) = (0, 0, 0);
    for relative in (0..segment.size as u32).step_by(STEP) {
        let at = segment.vaddr + u64::from(relative);
        let row = row_at(segment, relative);
        assert_eq!(row, packed_row_at(arena, page, relative), "{at:#x}");
        let truth = find(at, &mut context);
        if let Ok(truth) = truth {
            assert_same_rule(row, &truth, at);
            covered += 1;
            unsupported += usize::from(row.kind == kind::UNSUPPORTED);
        } else if row.kind != kind::NONE {
            let is_padding = (1..16).any(|back| find(at - back, &mut context).is_ok());
            let is_reckoned = [kind::STACK_POINTER, kind::END].contains(&row.kind);
            assert!(is_padding || is_reckoned, "{at:#x} has a rule and no entry");
            reckoned += usize::from(!is_padding);
        }
    }
    assert!(table.stats.entries > 0);
    // A range of so many bytes is met at most so often.
    let met_max = table.stats.reckoned_bytes as usize / STEP + table.stats.reckoned;
    assert!(
        reckoned <= met_max,
        "{reckoned} addresses have a rule and no entry, of {met_max}"
    );
    (covered, unsupported)
}

#[test]
fn rows_of_this_process_are_what_gimli_finds() {
    let (_, images) = own_images();
    let mut arena = Arena::default();
    let mut totals = (0, 0);
    for ((path, bytes), image) in images.iter().zip(0..) {
        let table = UnwindTable::build(bytes).unwrap();
        assert_consistent(&table);
        let placed = arena.insert(image, &table).unwrap().to_vec();
        let (mut covered, mut unsupported) = (0, 0);
        for (segment, place) in table.segments.iter().zip(placed) {
            let (with_entry, without_rule) = compare(bytes, &table, segment, place.page, &arena);
            covered += with_entry;
            unsupported += without_rule;
        }
        println!(
            "{}: {covered} addresses, {unsupported} unsupported; {:?}",
            path.display(),
            table.stats
        );
        assert!(covered > 0);
        totals = (totals.0 + covered, totals.1 + unsupported);
        assert_eq!(
            (
                table.stats.broken_entries,
                table.stats.broken_commons,
                table.stats.broken_instructions
            ),
            (0, 0, 0)
        );
        assert!(!table.stats.cut);
    }
    assert!(images.len() >= 3, "program, libc and vdso");
    // They are in the dynamic linker's own entry points, which no task is born in.
    assert!(
        totals.1 * 500 <= totals.0,
        "{totals:?}: more than one address in 500 lacks a rule"
    );
}
