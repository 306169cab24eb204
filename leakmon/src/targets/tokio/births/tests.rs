//! Short pieces of machine code, and the site that each must get.

use super::super::vtables::SHAPES;
use super::*;

const ADDRESS: u64 = 0x1000;
const VTABLE: u64 = 0x9000;
/// With a trailer of 0x30 bytes the cell has 0x80.
const TRAILER: u64 = 0x50;

/// Replaces `V` by the distance from its end to the vtable.
fn assemble(parts: &[&[u8]]) -> Vec<u8> {
    let mut code = Vec::new();
    for part in parts {
        if *part == b"V" {
            let distance = VTABLE as i64 - (ADDRESS as i64 + code.len() as i64 + 4);
            code.extend((distance as i32).to_le_bytes());
        } else {
            code.extend(*part);
        }
    }
    code
}

/// Offset, register, condition, cheap; or why there is none.
type Found = Result<(u64, u8, Condition, bool), &'static str>;

fn births(code: &[u8]) -> Vec<Found> {
    let vtable = Vtable {
        address: VTABLE,
        functions: vec![ADDRESS; 7],
        trailer_offset: Some(TRAILER),
        scheduler_offset: Some(0x20),
        id_offset: Some(0x28),
    };
    let image = Image::of_code(ADDRESS, code, &[]);
    let births = find(&image, &SHAPES[0], &[vtable]);
    assert!(births.iter().all(|birth| birth.vtable == VTABLE));
    births
        .into_iter()
        .map(|birth| {
            birth
                .site
                .map(|site| (site.address - ADDRESS, site.register, site.condition, site.cheap))
        })
        .collect()
}

const LEA_RAX: &[u8] = b"\x48\x8d\x05";
const STORE_ON_STACK: &[u8] = b"\x48\x89\x44\x24\x10"; // mov [rsp+16], rax
const SIZE_ALIGN: &[u8] = b"\xbf\x80\x00\x00\x00\xbe\x80\x00\x00\x00"; // mov edi, 128 · mov esi, 128
const CALL: &[u8] = b"\xe8\x00\x10\x00\x00";
const CALL_RBX: &[u8] = b"\xff\xd3";
const TEST_RAX: &[u8] = b"\x48\x85\xc0";
const RET: &[u8] = b"\xc3";

#[test]
fn the_branch_of_the_null_check_is_the_site() {
    // je over · ret
    let code = assemble(&[
        LEA_RAX,
        b"V",
        STORE_ON_STACK,
        SIZE_ALIGN,
        CALL,
        TEST_RAX,
        b"\x74\x01",
        RET,
        RET,
    ]);
    assert_eq!(births(&code), [Ok((30, RAX, Condition::ZeroClear, true))]);
    // The result moved first, and `jne`: mov rbx, rax · test rbx, rbx · jne
    let moved = assemble(&[
        LEA_RAX,
        b"V",
        STORE_ON_STACK,
        SIZE_ALIGN,
        CALL,
        b"\x48\x89\xc3\x48\x85\xdb\x75\x01",
        RET,
        RET,
    ]);
    assert_eq!(births(&moved).len(), 1);
    let (offset, register, _, cheap) = births(&moved)[0].unwrap();
    assert_eq!((offset, cheap), (33, true));
    assert!(register == RAX || register == 3);
}

#[test]
fn every_allocators_arguments_are_known() {
    for arguments in [
        &b"\xbf\x80\x00\x00\x00\xbe\x80\x00\x00\x00"[..], // size 128, alignment 128
        b"\xbf\x08\x00\x00\x00\xbe\x80\x00\x00\x00",      // alignment 8, size 128
        b"\xbf\x80\x00\x00\x00",                          // size alone
        b"\xbf\x80\x00\x00\x00\xbe\x07\x00\x00\x00",      // size 128, the flags of alignment 128
        b"\x6a\x80\x5f\x81\xe7\x80\x00\x00\x00\xbf\x80\x00\x00\x00", // with pushes between
    ] {
        let code = assemble(&[
            LEA_RAX,
            b"V",
            STORE_ON_STACK,
            arguments,
            CALL_RBX,
            TEST_RAX,
            b"\x74\x01",
            RET,
            // What reports that there is no memory: alignment 128, size 128.
            SIZE_ALIGN,
            CALL,
        ]);
        assert_eq!(births(&code).len(), 1);
        assert!(
            matches!(births(&code)[0], Ok((_, RAX, Condition::ZeroClear, true))),
            "{arguments:x?}: {:?}",
            births(&code)
        );
    }
    // posix_memalign(&slot, 128, 128): lea rdi, [rsp+8] · … · call · test eax, eax · jne · mov r14, [rsp+8] · test r14, r14 · je
    let code = assemble(&[
        LEA_RAX,
        b"V",
        STORE_ON_STACK,
        b"\x48\x8d\x7c\x24\x08\xbe\x80\x00\x00\x00\xba\x80\x00\x00\x00",
        CALL,
        b"\x85\xc0\x75\x0a\x4c\x8b\x74\x24\x08\x4d\x85\xf6\x74\x00",
        RET,
        RET,
        RET,
    ]);
    assert_eq!(births(&code), [Ok((44, 14, Condition::ZeroClear, true))]);
}

#[test]
fn flags_for_an_alignment_of_256_are_no_alignment_of_8() {
    // mov edi, 256 · mov esi, 8
    let code = assemble(&[
        LEA_RAX,
        b"V",
        STORE_ON_STACK,
        b"\xbf\x00\x01\x00\x00\xbe\x08\x00\x00\x00",
        CALL,
        TEST_RAX,
        b"\x74\x01",
        RET,
        RET,
    ]);
    assert_eq!(births(&code), [Ok((30, RAX, Condition::ZeroClear, true))]);
}

#[test]
fn allocations_of_another_size_are_not_the_tasks() {
    for arguments in [
        &b"\xbf\x00\x01\x00\x00\xbe\x80\x00\x00\x00"[..], // 256
        b"\xbf\x50\x00\x00\x00\xbe\x08\x00\x00\x00",      // no room for the trailer
        b"\xbf\x78\x00\x00\x00\xbe\x08\x00\x00\x00",      // between the trailers' sizes
    ] {
        let code = assemble(&[
            LEA_RAX,
            b"V",
            STORE_ON_STACK,
            arguments,
            CALL,
            TEST_RAX,
            b"\x74\x01",
            RET,
            RET,
        ]);
        assert_eq!(
            births(&code),
            [Err("no allocation of its size follows")],
            "{arguments:x?}"
        );
    }
}

#[test]
fn a_vtable_stored_in_place_marks_the_header() {
    // lea rax · mov [rbx+16], rax · push rax · xor eax, eax
    let code = assemble(&[LEA_RAX, b"V", b"\x48\x89\x43\x10\x50\x31\xc0", RET]);
    assert_eq!(births(&code), [Ok((11, 3, Condition::Always, true))]);
    // The base is overwritten before anything cheap: the slow instruction behind the store. mov rbx, rcx · push rax
    let lost = assemble(&[LEA_RAX, b"V", b"\x48\x89\x43\x10\x48\x89\xcb\x50\x31\xc0", RET]);
    assert_eq!(births(&lost), [Ok((11, 3, Condition::Always, false))]);
}

#[test]
fn a_place_that_is_jumped_to_is_no_site() {
    // jmp to the branch (over everything) at the start: eb rel8
    let body: [&[u8]; 9] = [
        LEA_RAX,
        b"V",
        STORE_ON_STACK,
        SIZE_ALIGN,
        CALL,
        TEST_RAX,
        b"\x74\x01",
        RET,
        RET,
    ];
    let mut parts: Vec<&[u8]> = vec![b"\x74\x1e"];
    parts.extend(body);
    let code = assemble(&parts);
    // The branch is at 32 and a target: the instruction before it, right behind the call, must do.
    assert_eq!(births(&code), [Ok((29, RAX, Condition::Always, false))]);
}

#[test]
fn an_unoptimised_build_asks_a_function_for_the_vtable() {
    // At 0: lea rax, [V] · ret: an accessor alone has no birth.
    let accessor = assemble(&[LEA_RAX, b"V", RET]);
    assert_eq!(births(&accessor), []);
}

#[test]
fn without_effort_left_a_problem_is_told_or_nothing_is_found() {
    let code = assemble(&[
        LEA_RAX,
        b"V",
        STORE_ON_STACK,
        SIZE_ALIGN,
        CALL,
        TEST_RAX,
        b"\x74\x01",
        RET,
        RET,
    ]);
    let vtable = Vtable {
        address: VTABLE,
        functions: vec![ADDRESS; 7],
        trailer_offset: Some(TRAILER),
        scheduler_offset: Some(0x20),
        id_offset: Some(0x28),
    };
    for effort in 0..60 {
        let image = Image::of_code(ADDRESS, &code, &[]).with_effort(effort);
        let births = find(&image, &SHAPES[0], std::slice::from_ref(&vtable));
        let found = births.iter().any(|birth| birth.site.is_ok());
        assert!(found || !image.is_searched(), "{effort}");
    }
}
