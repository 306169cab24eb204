//! Symbols and what they must be read as.

use super::*;
use proptest::prelude::*;

const CELL_OF_RUN: &str =
    "core::ptr::drop_in_place<tokio::runtime::task::core::Cell<app::run::{{closure}},alloc::sync::Arc<x::H>>>";

#[test]
fn a_future_is_read_from_symbols_that_spell_it_out() {
    for (symbol, expected) in [
        (CELL_OF_RUN, Some("app::run::{{closure}}")),
        // v0 mangling
        (
            "core::ptr::drop_in_place::<tokio::runtime::task::core::Cell<app::run::{closure#0}, alloc::sync::Arc<x::H>>>",
            Some("app::run::{closure#0}"),
        ),
        (
            "tokio::runtime::task::raw::poll::<app::Run<(u8, [u8; 2])>, alloc::sync::Arc<x::H>>",
            Some("app::Run<(u8, [u8; 2])>"),
        ),
        (
            "core::ptr::drop_in_place<core::cell::UnsafeCell<tokio::runtime::task::core::Stage<app::F<fn(u8) -> u8,u8>>>>",
            Some("app::F<fn(u8) -> u8,u8>"),
        ),
        // The closure of spawn_blocking
        (
            "core::ptr::drop_in_place<tokio::runtime::task::core::Stage<tokio::runtime::blocking::task::BlockingTask<app::b::{{closure}}>>>",
            Some("app::b::{{closure}}"),
        ),
        // A generic function's legacy symbol does not tell its arguments.
        ("tokio::runtime::task::core::Cell<T,S>::new", None),
        ("tokio::runtime::task::harness::Harness<T,S>::complete", None),
        (
            "tokio::runtime::task::core::Cell<tokio::runtime::blocking::task::BlockingTask<T>,S>::new",
            None,
        ),
        ("app::main", None),
        // Broken off
        ("tokio::runtime::task::core::Cell<app::run", None),
        ("tokio::runtime::task::core::Cell<", None),
        ("tokio::runtime::task::core::Cell<app)>", None),
    ] {
        assert_eq!(future(symbol).as_deref(), expected, "{symbol}");
    }
}

#[test]
fn poll_is_recognised_as_the_futures_own_code() {
    for (symbol, expected) in [
        ("app::run::{{closure}}", Some("app::run::{{closure}}")),
        (
            "<app::Manual as core::future::future::Future>::poll",
            Some("app::Manual"),
        ),
        (
            "<tokio::runtime::blocking::task::BlockingTask<T> as core::future::future::Future>::poll",
            None,
        ),
        ("<app::Manual as core::fmt::Debug>::fmt", None),
        ("tokio::runtime::task::core::Core<T,S>::poll::{{closure}}", None),
        ("app::run", None),
    ] {
        assert_eq!(polled_future(symbol).as_deref(), expected, "{symbol}");
    }
}

#[test]
fn generics_are_left_out_for_comparison() {
    assert_eq!(
        without_generics("app::run<alloc::vec::Vec<u8>>::{{closure}}"),
        "app::run::{{closure}}"
    );
    assert_eq!(without_generics("a>b<c"), "ab");
}

#[test]
fn a_name_at_the_bound_is_whole_and_one_above_is_cut() {
    assert_eq!(cut("x".repeat(NAME_BYTES_MAX)).len(), NAME_BYTES_MAX);
    assert_eq!(cut("x".repeat(NAME_BYTES_MAX + 1)).len(), NAME_BYTES_MAX);
    // A character of two bytes on the bound goes as a whole.
    assert_eq!(
        cut(format!("x{}", "é".repeat(NAME_BYTES_MAX))).len(),
        NAME_BYTES_MAX - 1
    );
}

fn claim(future: &str, source: u64, holders_max: usize) -> Claim {
    Claim {
        blocking: false,
        future: future.to_owned(),
        source,
        holders_max,
    }
}

fn names(claims: &[Claim], polled: &[Claim], held: &[(u64, usize)]) -> Vec<String> {
    let evidence = Evidence {
        claims: claims.iter().cloned().collect(),
        polled: polled.iter().cloned().collect(),
        local: false,
    };
    let held = |claim: &Claim| held.iter().find(|held| held.0 == claim.source).map_or(1, |held| held.1);
    naming(&evidence, &held).names
}

#[test]
fn code_of_one_type_alone_is_believed_before_merged_code() {
    let own = claim("app::a", 1, 1);
    let merged = claim("app::b", 2, 1);
    assert_eq!(names(&[own.clone(), merged.clone()], &[], &[(2, 2)]), ["app::a"]);
    // Nothing but merged code: the name may be another type's.
    assert_eq!(
        names(std::slice::from_ref(&merged), &[], &[(2, 2)]),
        [SAME_CODE, "app::b"]
    );
    // Several symbols of merged code: one of them.
    let alias = claim("app::c", 2, 1);
    assert_eq!(
        names(&[merged.clone(), alias.clone()], &[], &[(2, 2)]),
        ["app::b", "app::c"]
    );
    // What `poll` runs decides, unless it was merged as well.
    let polled = claim("app::c", 3, SCHEDULERS_OF_A_FUTURE);
    assert_eq!(
        names(
            &[merged.clone(), alias.clone()],
            std::slice::from_ref(&polled),
            &[(2, 2), (3, 2)]
        ),
        ["app::c"]
    );
    assert_eq!(
        names(&[merged, alias], &[polled], &[(2, 2), (3, 3)]),
        ["app::b", "app::c"]
    );
    assert_eq!(names(&[], &[], &[]), [""; 0]);
}

proptest! {
    #[test]
    fn no_symbol_breaks_it(symbol in "(tokio::runtime::task::core::Cell<|Stage<|<|>|,|->|\\(|\\)|\\[|\\]|\\{|T|é|app::){0,40}") {
        let name = future(&symbol).unwrap_or_default();
        prop_assert!(name.len() <= NAME_BYTES_MAX);
        let _ = polled_future(&symbol);
        prop_assert!(without_generics(&symbol).len() <= symbol.len());
    }
}
