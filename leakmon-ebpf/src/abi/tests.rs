//! The contract's own arithmetic.

use super::*;

#[test]
fn a_cookie_gives_back_what_it_was_made_of() {
    for (register, role, condition, kind, site, image) in [
        (0, Role::Birth, Condition::Always, Kind::Task, 0, 0),
        (
            15,
            Role::End,
            Condition::ZeroSet,
            Kind::Blocking,
            Cookie::SITES_MAX - 1,
            Cookie::IMAGES_MAX - 1,
        ),
        (31, Role::Birth, Condition::ZeroClear, Kind::Local, 77, 3),
        (7, Role::Freed, Condition::Always, Kind::Task, 78, 3),
    ] {
        for every in [false, true] {
            let mut cookie = Cookie::new(register, role, condition, kind, site, image);
            if every {
                cookie = cookie.for_every_process();
            }
            assert_eq!(cookie.register(), register);
            assert_eq!(cookie.role(), role as u8);
            assert_eq!(cookie.condition(), condition as u8);
            assert_eq!(cookie.kind(), kind as u8);
            assert_eq!(cookie.site(), site);
            assert_eq!(cookie.image(), image);
            assert_eq!(cookie.is_for_every_process(), every);
            assert_eq!(cookie.vtable_word(), 0);
            let proving = cookie.with_vtable_word(0xff).with_vtable_word(5);
            assert_eq!(
                (proving.vtable_word(), proving.image(), proving.site()),
                (5, image, site)
            );
        }
    }
}

#[test]
fn threads_are_told_from_tasks() {
    assert!(Cookie::THREAD.is_thread());
    assert!(!Cookie::new(3, Role::End, Condition::ZeroSet, Kind::Blocking, 1, 1).is_thread());
    assert!(LiveKey::thread(7, 4_194_303).is_thread());
    // The highest address of a process with five-level page tables.
    let header = (1 << 56) - 1;
    assert!(!LiveKey { target: 7, header }.is_thread());
}

#[test]
fn places_are_spread_and_within_their_map() {
    assert_eq!(size_of::<LiveSlot>(), 64);
    let target = TargetId::new(4_194_303, 1_795_894_848_301_344_952).0;
    // Headers as allocators give them, side by side: 8 places as many as there are of them.
    for stride in [128, 256, 384, 1024, 4096] {
        let mut taken = [0; LIVE_SLOTS_MAX as usize];
        for index in 0..u64::from(LIVE_SLOTS_MAX / 8) {
            let header = 0x7f12_3400_0000 + index * stride;
            taken[LiveKey { target, header }.slot() as usize] += 1;
        }
        assert!(taken.iter().all(|&count| count <= 3), "{stride}");
    }
    for key in [LiveKey::thread(u64::MAX, u32::MAX), LiveKey { target: 0, header: 0 }] {
        assert!(key.slot() < LIVE_SLOTS_MAX);
    }
}

#[test]
fn targets_of_one_process_differ_by_time() {
    let first = TargetId::new(4_194_303, 1_000_000);
    let second = TargetId::new(4_194_303, 1_000_001);
    assert_ne!(first, second);
    assert_eq!(first.tgid(), 4_194_303);
    assert_eq!(second.tgid(), 4_194_303);
}

#[test]
fn loss_reasons_are_indices() {
    for (index, loss) in Loss::ALL.iter().enumerate() {
        assert_eq!(*loss as usize, index);
    }
}

#[test]
fn ages_are_told_apart_at_powers_of_four_seconds() {
    assert_eq!(age_class(0), 0);
    for class in 1..AGE_CLASSES as u32 {
        let bound_ns = 1_000_000_000 * 4_u64.pow(class - 1);
        assert_eq!((age_class(bound_ns - 1), age_class(bound_ns)), (class - 1, class));
    }
    assert_eq!(age_class(u64::MAX) as usize, AGE_CLASSES - 1);
}
