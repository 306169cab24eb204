//! Tests on symbols harvested from real programs, on names in the forms that those did not have, and on whole stacks.

use super::*;
use crate::symbols::names::demangle;
use proptest::prelude::*;

/// Owner, symbol, expected name, tab-separated; lines with `#` are comments.
const HARVESTED: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/symbols.tsv"));

fn table(patterns: &[&str]) -> HideTable {
    HideTable::new(patterns.iter().map(|pattern| (*pattern).to_owned())).unwrap()
}

#[test]
fn harvested_symbols_are_named_and_owned() {
    let hide = table(&[]);
    let mut rows = 0;
    for line in HARVESTED.lines().filter(|line| !line.starts_with('#')) {
        let [owner, symbol, name] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        assert_eq!(demangle(symbol), name, "{symbol}");
        let expected = match owner {
            "user" => Owner::User,
            "wrapper" => Owner::Wrapper,
            "runtime" => Owner::Runtime,
            other => panic!("{other}"),
        };
        assert_eq!(hide.owner(name), expected, "{name}");
        rows += 1;
    }
    assert!(rows >= 80, "{rows}");
}

#[test]
fn other_forms_are_owned() {
    let hide = table(&[]);
    for (owner, names) in [
        (
            Owner::User,
            &[
                "app::spawn_all::<tokio::sync::mpsc::Sender<u8>>",
                "<app::Foo<tokio::time::Sleep>>::run::{closure#0}",
                "<app::Foo as core::future::future::Future>::poll",
                "<app::Foo<u8> as hyper::service::Service<http::Request<hyper::body::Incoming>>>::call",
                "<&mut app::Foo as core::future::future::Future>::poll",
                "<&'a app::Foo as core::iter::IntoIterator>::into_iter",
                "<dyn app::Job + core::marker::Send>::start",
                "<F as app::Ext>::detach",
                "<(A, B) as app::Ext>::detach",
                "<alloc::vec::Vec<u8> as app::Ext>::detach",
                "<tokio::net::TcpStream as app::Ext>::detach",
                "<fn(u8) -> u8 as app::Ext>::detach",
                "<app::main::{closure#0} as core::ops::function::FnOnce<()>>::call_once::{shim:vtable#0}",
                "<<app::Foo>::run::{closure#0} as core::future::future::Future>::poll",
                "app::jobs::<impl core::fmt::Debug for tokio::time::Sleep>::fmt",
                "app::jobs::_::<impl app::jobs::Pinned<T>>::project",
                "tokio_app::main",
                "corelib::main",
                "towers::main::{{closure}}",
            ][..],
        ),
        (
            Owner::Wrapper,
            &[
                "<F as tower_service::Service<R>>::call",
                "<alloc::boxed::Box<S> as tower_service::Service<R>>::call",
                "<futures_util::future::Map<Fut, app::main::{closure#0}> as core::future::future::Future>::poll",
                "futures::executor::block_on",
                "tracing_futures::Instrumented<T>::inner",
                "http_body_util::combinators::BodyExt::boxed",
            ],
        ),
        (
            Owner::Runtime,
            &[
                "tokio::task::spawn::spawn::<app::main::{{closure}}>",
                "tokio::task::spawn::spawn::<app::main::{closure#0}::{closure#1}>",
                "<tokio::runtime::task::core::Core<app::leak::{closure#0}, alloc::sync::Arc<app::S>>>::poll",
                "<tokio::task::JoinSet<app::Out>>::spawn::<app::leak::{closure#0}>",
                "<core::pin::Pin<&mut app::Foo> as core::future::future::Future>::poll",
                "<F as core::future::into_future::IntoFuture>::into_future",
                "<[T]>::sort",
                "<str>::len",
                "<fn() -> core::result::Result<(), E> as core::ops::function::FnOnce<()>>::call_once",
                "<*const T>::add",
                "core::ptr::drop_in_place::<app::Foo>",
                "__libc_start_main_impl",
                "__libc_start_call_main",
                "start_thread",
                "clone3",
                "__rust_try",
                "__rustc::rust_begin_unwind",
                "<",
                "<<<<<<<<<<<<<<<<<<<<",
            ],
        ),
    ] {
        for name in names {
            assert_eq!(hide.owner(name), owner, "{name}");
        }
    }
}

fn stack(functions: &[&str]) -> Vec<ResolvedFrame> {
    let frame = |function: &&str| {
        let (image, function) = function.split_once('!').unwrap_or(("app", function));
        ResolvedFrame {
            function: (!function.is_empty()).then(|| function.to_owned()),
            image: Some(image.into()),
            ..ResolvedFrame::default()
        }
    };
    functions.iter().map(frame).collect()
}

const POLLED: [&str; 4] = [
    "tokio::runtime::task::core::Core<T,S>::poll",
    "std::sys::backtrace::__rust_begin_short_backtrace",
    "core::ops::function::FnOnce::call_once{{vtable.shim}}",
    "libc.so.6!start_thread",
];

/// Inner frames of a stack, above [`POLLED`], and the index of the one that a person would call the culprit.
const STACKS: &[(&str, &[&str], usize)] = &[
    (
        "spawn",
        &[
            "tokio::task::spawn::spawn",
            "app::accept::{{closure}}",
            "app::main::{{closure}}",
        ],
        1,
    ),
    (
        "JoinSet",
        &[
            "tokio::runtime::task::core::Cell<T,S>::new",
            "tokio::task::join_set::JoinSet<T>::spawn",
            "app::f",
        ],
        2,
    ),
    (
        "TaskTracker",
        &[
            "tokio::task::spawn::spawn_inner",
            "tokio_util::task::task_tracker::TaskTracker::spawn",
            "app::f",
        ],
        2,
    ),
    (
        "hyper's executor",
        &[
            "tokio::task::spawn::spawn",
            "<hyper_util::rt::tokio::TokioExecutor as hyper::rt::Executor<Fut>>::execute",
            "hyper::proto::h2::server::Server<T,S,B,E>::poll_server",
            "app::serve::{{closure}}",
        ],
        3,
    ),
    (
        "an executor of the user's",
        &[
            "tokio::task::spawn::spawn",
            "<app::Exec as hyper::rt::Executor<F>>::execute",
            "hyper::a::b",
            "app::serve",
        ],
        3,
    ),
    (
        "axum",
        &[
            "tokio::task::spawn::spawn",
            "app::hello::{{closure}}",
            "<F as axum::handler::Handler<((),),S>>::call::{{closure}}",
        ],
        1,
    ),
    (
        "FuturesUnordered",
        &[
            "tokio::task::spawn::spawn",
            "app::main::{{closure}}::{{closure}}",
            "<futures_util::stream::FuturesUnordered<Fut> as futures_core::stream::Stream>::poll_next",
            "app::main::{{closure}}",
        ],
        1,
    ),
    (
        "a generic wrapper",
        &["tokio::task::spawn::spawn", "app::spawn_named", "app::start"],
        2,
    ),
    (
        "an async wrapper",
        &[
            "tokio::task::spawn::spawn",
            "app::Pool::spawn::{{closure}}",
            "app::start",
        ],
        2,
    ),
    (
        "only a wrapper of the user's",
        &["tokio::task::spawn::spawn", "hyper::x::y", "app::spawn_named"],
        2,
    ),
    (
        "a wrapper and startup",
        &[
            "tokio::task::spawn::spawn",
            "app::spawn_named",
            "app!main",
            "libc.so.6!main_loop",
        ],
        1,
    ),
    (
        "everything hidden",
        &["tokio::task::spawn::spawn", "hyper::x::y", "axum::x::y"],
        1,
    ),
    (
        "a future inlined where it is polled",
        &[
            "tokio::runtime::task::core::Cell<T,S>::new",
            "tokio::task::spawn::spawn",
        ],
        2,
    ),
    (
        "such a task of a current-thread runtime",
        &[
            "tokio::task::spawn::spawn",
            "tokio::runtime::task::raw::poll",
            "tokio::runtime::context::scoped::Scoped<T>::set",
            "app::main",
        ],
        1,
    ),
    (
        "such a task in a task of its own runtime",
        &[
            "tokio::task::spawn::spawn",
            "<tokio::runtime::task::harness::Harness<app::Job, S>>::poll",
            "app::run_locally",
        ],
        1,
    ),
    (
        "an inlined blocking closure",
        &[
            "tokio::task::spawn::spawn",
            "<tokio::runtime::blocking::task::BlockingTask<T> as core::future::future::Future>::poll",
        ],
        1,
    ),
    (
        "a wrapper in a task",
        &[
            "tokio::task::spawn::spawn",
            "app::spawn_named",
            "tokio::runtime::task::raw::poll",
            "app::main",
        ],
        1,
    ),
    (
        "a future of the runtime's that is no task",
        &[
            "tokio::task::spawn::spawn",
            "<tokio::task::local::RunUntil<T> as core::future::future::Future>::poll",
            "app::main",
        ],
        2,
    ),
    ("no names in the task", &["", "", ""], 3),
    (
        "a C caller in the same file",
        &["tokio::task::spawn::spawn", "on_message", "app::main"],
        1,
    ),
    (
        "a C caller in another file",
        &["tokio::task::spawn::spawn", "libuv.so!uv_run", "app::main"],
        2,
    ),
    ("a gap", &["tokio::task::spawn::spawn", "", "app::main"], 2),
];

#[test]
fn the_location_is_the_innermost_frame_of_the_user() {
    for (case, inner, index) in STACKS {
        let functions = [inner, &POLLED[..]].concat();
        assert_eq!(table(&[]).location(&stack(&functions)), *index, "{case}");
    }
    let bare = stack(&["tokio::task::spawn::spawn", "std::rt::lang_start"]);
    assert_eq!(table(&[]).location(&bare), 0);
    assert_eq!(table(&[]).location(&stack(&["", "", ""])), 0);
    assert_eq!(table(&[]).location(&[]), 0);
}

#[test]
fn patterns_hide_crates_and_paths() {
    let frames = stack(&[
        "tokio::task::spawn::spawn",
        "<pool::Pool<T> as app::Ext>::go",
        "pool::inner::run::{{closure}}",
        "app::db::query::<u8>",
        "app::main",
    ]);
    for (patterns, index) in [
        (&[][..], 1),
        (&["pool"], 3),
        (&["pool::*"], 3),
        (&["po*"], 3),
        (&["poo"], 1),
        (&["pool::inner"], 1),
        (&["pool", "app::db"], 4),
        (&["pool", "app::db::"], 4),
        (&["pool", "app::*::query"], 4),
        (&["pool", "app::d"], 3),
        // All of the user's is hidden: the innermost outside the runtime.
        (&["pool", "app"], 1),
    ] {
        assert_eq!(table(patterns).location(&frames), index, "{patterns:?}");
    }
}

#[test]
fn patterns_are_bounded() {
    let new = |pattern: String| HideTable::new([pattern]).map(|_| ());
    for empty in ["", "*", "**", "::", " "] {
        assert_eq!(new(empty.to_owned()), Err(HideError::Empty), "{empty}");
    }
    assert_eq!(new("a".repeat(PATTERN_BYTES_MAX)), Ok(()));
    assert_eq!(
        new("a".repeat(PATTERN_BYTES_MAX + 1)),
        Err(HideError::TooLong("a".repeat(32)))
    );
    let many = |count| HideTable::new(std::iter::repeat_n("a".to_owned(), count)).map(|table| table.patterns.len());
    assert_eq!(many(PATTERNS_MAX), Ok(PATTERNS_MAX));
    assert_eq!(many(PATTERNS_MAX + 1), Err(HideError::TooMany));
}

/// The same by recursion, which is exponential.
fn naive_glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|taken| naive_glob(rest, &text[taken..])),
        Some((byte, rest)) => text.first() == Some(byte) && naive_glob(rest, &text[1..]),
    }
}

proptest! {
    #[test]
    fn globs_match_as_the_naive_ones_do(pattern in "[ab*]{0,8}", text in "[ab]{0,12}") {
        prop_assert_eq!(matches_glob(&pattern, &text), naive_glob(pattern.as_bytes(), text.as_bytes()));
    }

    #[test]
    fn any_name_has_an_owner(name in "[<>&a-zA-Z:{}()\\[\\] +,*!é-]{0,60}") {
        let hide = table(&["a*b"]);
        let frames = stack(&[&name, &name]);
        prop_assert!(hide.owner(&name) <= Owner::User);
        prop_assert!(hide.location(&frames) < 2);
    }

    #[test]
    fn generic_arguments_never_own(crate_name in "[a-z]{1,6}", argument in "[a-z]{1,5}(::[A-Z][a-z]{1,5}){1,3}") {
        let hide = table(&[]);
        let plain = hide.owner(&format!("{crate_name}::run"));
        prop_assert_eq!(hide.owner(&format!("{crate_name}::run::<{argument}>")), plain);
        prop_assert_eq!(hide.owner(&format!("<{crate_name}::Pool<{argument}>>::run")), plain);
        prop_assert_eq!(hide.owner(&format!("<{crate_name}::Pool<{argument}> as core::Do<{argument}>>::run")), plain);
    }
}
