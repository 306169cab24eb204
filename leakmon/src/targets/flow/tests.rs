//! What a flow may cost: functions made to be followed again and again, and the budget that ends that.

use super::*;
use std::cell::Cell;

const ADDRESS: u64 = 0x1000;

/// A function whose ways meet again in another state many times over. It sets so many stack slots; a loop with so many branches in
/// it moves each slot to the one before and forgets the last, so the slots are lost one by one, a round for each; and behind it
/// are more loops that push than the frame is reckoned anew for, each of which begins all of that again.
fn branches(slots: u32, blocks: usize) -> Vec<u8> {
    // sub rsp, 0x400 · xor eax, eax
    let mut code = b"\x48\x81\xec\x00\x04\x00\x00\x31\xc0".to_vec();
    let with_slot = |code: &mut Vec<u8>, instruction: &[u8], slot: u32| {
        code.extend(instruction);
        code.extend((8 * slot).to_le_bytes());
    };
    // mov [rsp + 8 slot], rax
    let store = b"\x48\x89\x84\x24";
    (0..slots).for_each(|slot| with_slot(&mut code, store, slot));
    let head = code.len();
    // call +0 · jne +0
    (0..blocks).for_each(|_| code.extend(b"\xe8\x00\x00\x00\x00\x75\x00"));
    for slot in 1..slots {
        // mov rax, [rsp + 8 slot]
        with_slot(&mut code, b"\x48\x8b\x84\x24", slot);
        with_slot(&mut code, store, slot - 1);
    }
    // mov [rsp + 8 slot], rcx: a call has destroyed it
    with_slot(&mut code, b"\x48\x89\x8c\x24", slots - 1);
    // jne head
    let back = head as i64 - (code.len() as i64 + 6);
    code.extend(b"\x0f\x85");
    code.extend((back as i32).to_le_bytes());
    // push rax · jne -3
    (0..FRAME_PLACES_MAX + 4).for_each(|_| code.extend(b"\x50\x75\xfd"));
    code.push(0xc3);
    code
}

/// Whether the flow through this code came to rest, how many calls it has followed, and whether the effort has sufficed.
fn follow(code: &[u8], effort: u64) -> (bool, u64, bool) {
    let image = Image::of_code(ADDRESS, code, &[]).with_effort(effort);
    let function = Function::from_bytes(code, ADDRESS);
    let followed = Cell::new(0);
    let count = |_: &Instruction, _: Option<u64>, _: &State| {
        followed.set(followed.get() + 1);
        OPAQUE
    };
    let settled = Flow::through(&image, &function, &count).is_some();
    (settled, followed.get(), image.is_searched())
}

#[test]
fn the_effort_is_spent_to_its_last_instruction() {
    // call +0 · jne +0 · ret: two blocks, three instructions. The last one paid for must leave something.
    let plain = b"\xe8\x00\x00\x00\x00\x75\x00\xc3";
    // sub rsp, 0x400 · xor eax, eax · four slots · the same: nine instructions, and the price of four slots each time that
    // they are taken to a block (it has two ways, both to the same) or out of one.
    let mut slots = b"\x48\x81\xec\x00\x04\x00\x00\x31\xc0".to_vec();
    for slot in 0..4_u8 {
        slots.extend([0x48, 0x89, 0x44, 0x24, 8 * slot]);
    }
    slots.extend(plain);
    for (code, cost) in [(&plain[..], 3), (&slots[..], 9 + 3)] {
        assert_eq!(follow(code, cost + 1), (true, 1, true));
        assert_eq!(follow(code, cost), (false, 1, false));
    }
}

#[test]
fn a_file_of_branches_costs_what_one_image_may_and_no_more() {
    const SLOTS: u32 = 60;
    let (settled, followed, searched) = follow(&branches(SLOTS, 500), u64::MAX);
    assert!(!settled && searched);
    assert!(followed >= 500 * FRAME_PLACES_MAX as u64, "{followed}");

    let code = branches(SLOTS, 57_000);
    assert!(code.len() > 394_000);
    // Each of its blocks is two instructions, a state that is copied, and two ways on which it is compared.
    let block = 2 + 3 * u64::from(SLOTS) / 4;
    for effort in [1 << 10, 1 << 14, 1 << 16] {
        let (settled, followed, searched) = follow(&code, effort);
        assert!(!settled && !searched, "{effort}");
        assert!(
            (effort / block / 2..=effort / block).contains(&followed),
            "{effort}: {followed}"
        );
    }
}
