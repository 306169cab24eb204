//! Names as they are shown: demangled, without hashes and compiler suffixes, bounded.
//!
//! In: symbol names and type names from a target, any bytes that are UTF-8. Out: text of at most [`NAME_CHARS_MAX`]
//! characters. It does not escape: each output format does so for itself.

use std::fmt::{self, Write};

/// Characters of a name that are kept. Names of nested async types reach some hundred; a table shows far fewer.
pub const NAME_CHARS_MAX: usize = 1_024;
/// Bytes of a mangled name that are looked at. Longer ones are cut and not demangled.
const MANGLED_BYTES_MAX: usize = 16_384;
/// Names that "one of" spells out.
const ONE_OF_MAX: usize = 3;
/// Layers of wrapper types that are peeled off a task type.
const LAYERS_MAX: usize = 16;
/// Depth to which the C++ demangler may nest; its own default is 96 for parsing.
const CPP_DEPTH_MAX: u32 = 96;

/// Words that compilers append after a dot: LLVM's function splitting and thin LTO, GCC's clones. Numbers are dropped
/// too.
const SUFFIXES: [&str; 8] = [
    "llvm",
    "cold",
    "part",
    "isra",
    "constprop",
    "lto_priv",
    "localalias",
    "warm",
];

/// Types that only hold another future: what they hold is the task's type.
const TRANSPARENT: [&str; 13] = [
    "tokio::runtime::task::core::Cell",
    "tokio::runtime::task::core::Core",
    "tokio::runtime::task::core::CoreStage",
    "tokio::runtime::task::core::Stage",
    "tokio::runtime::blocking::task::BlockingTask",
    "tokio_util::task::task_tracker::TrackedFuture",
    "tracing::instrument::Instrumented",
    "tracing::instrument::WithDispatch",
    "tracing_futures::Instrumented",
    "core::pin::Pin",
    "core::panic::unwind_safe::AssertUnwindSafe",
    "alloc::boxed::Box",
    "futures_util::future::future::catch_unwind::CatchUnwind",
];

/// The name of a function as a person writes it: either Rust mangling, or C++, or the name itself.
#[must_use]
pub fn demangle(symbol: &str) -> String {
    let symbol = without_suffixes(symbol);
    if symbol.len() > MANGLED_BYTES_MAX {
        return cut(symbol);
    }
    if let Ok(name) = rustc_demangle::try_demangle(symbol) {
        // The alternate form leaves the hash out.
        return bounded(|out| write!(out, "{name:#}"));
    }
    if symbol.starts_with("_Z") {
        let parsing = cpp_demangle::ParseOptions::default().recursion_limit(CPP_DEPTH_MAX);
        let options = cpp_demangle::DemangleOptions::default().recursion_limit(CPP_DEPTH_MAX);
        if let Ok(name) = cpp_demangle::Symbol::new_with_options(symbol, &parsing) {
            let text = bounded(|out| name.structured_demangle(out, &options));
            if !text.is_empty() {
                return text;
            }
        }
    }
    cut(symbol)
}

/// A task's type without the types that merely carry it.
#[must_use]
pub fn task_type(full: &str) -> String {
    let mut name = full.trim();
    for _ in 0..LAYERS_MAX {
        let name_before = name;
        name = name.strip_prefix("&mut ").unwrap_or(name);
        if let Some((wrapper, arguments)) = name.strip_suffix('>').and_then(|name| name.split_once('<'))
            && TRANSPARENT.contains(&wrapper)
        {
            name = first_argument(arguments);
        }
        if name == name_before {
            break;
        }
    }
    cut(name)
}

/// What to call a task whose type is one of several, since the linker merged identical code. `None` without any name.
#[must_use]
pub fn one_of(names: &[String]) -> Option<String> {
    let mut shown: Vec<String> = Vec::new();
    for name in names.iter().map(|name| task_type(name)) {
        if !shown.contains(&name) {
            shown.push(name);
        }
    }
    let more = shown.len().saturating_sub(ONE_OF_MAX);
    shown.truncate(ONE_OF_MAX);
    match (shown.len(), more) {
        (0, _) => None,
        (1, 0) => shown.pop(),
        (_, 0) => Some(format!("one of {}", shown.join(", "))),
        (_, more) => Some(format!("one of {} and {more} more", shown.join(", "))),
    }
}

/// At most [`NAME_CHARS_MAX`] characters of `name`, the last of them `…` if something is missing.
#[must_use]
pub fn cut(name: &str) -> String {
    match name.char_indices().nth(NAME_CHARS_MAX) {
        None => name.to_owned(),
        Some(_) => name.chars().take(NAME_CHARS_MAX - 1).chain(['…']).collect(),
    }
}

/// Drops a symbol's version (`@GLIBC_2.34`) and what compilers append after the mangled name.
fn without_suffixes(symbol: &str) -> &str {
    let mut name = symbol.split_once('@').map_or(symbol, |(name, _)| name);
    while let Some((before, suffix)) = name.rsplit_once('.') {
        let decimal = !suffix.is_empty() && suffix.bytes().all(|byte| byte.is_ascii_digit());
        // Thin LTO appends a module's hash, in either base.
        let module = before.ends_with(".llvm") && suffix.bytes().all(|byte| byte.is_ascii_hexdigit());
        if before.is_empty() || !(SUFFIXES.contains(&suffix) || decimal || module) {
            break;
        }
        name = before;
    }
    match name.is_empty() {
        true => symbol,
        false => name,
    }
}

/// What comes before the first comma that is not inside brackets.
fn first_argument(arguments: &str) -> &str {
    let mut depth = 0_i32;
    let mut before = ' ';
    for (at, character) in arguments.char_indices() {
        match character {
            '<' | '(' | '[' | '{' => depth += 1,
            '>' if before == '-' => {}
            '>' | ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => return arguments[..at].trim(),
            _ => {}
        }
        before = character;
    }
    arguments.trim()
}

/// Collects what `print` writes, up to the bound; `print` learns by an error that more would be lost.
fn bounded(print: impl FnOnce(&mut Bounded) -> fmt::Result) -> String {
    let mut out = Bounded {
        text: String::new(),
        room: NAME_CHARS_MAX,
    };
    match print(&mut out) {
        Ok(()) => out.text,
        // A name that can't be demangled to its end, or that is too long.
        Err(_) if out.room > 0 => out.text,
        Err(_) => {
            out.text.pop();
            out.text.push('…');
            out.text
        }
    }
}

/// Text that stops growing at a number of characters.
struct Bounded {
    text: String,
    room: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        let mut characters = piece.chars();
        for character in characters.by_ref().take(self.room) {
            self.text.push(character);
        }
        let taken = piece.len() - characters.as_str().len();
        self.room -= piece[..taken].chars().count();
        match characters.as_str().is_empty() {
            true => Ok(()),
            false => Err(fmt::Error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn symbols_become_names() {
        for (symbol, name) in [
            ("_ZN3app6accept17h0123456789abcdefE", "app::accept"),
            ("_ZN3app6accept17h0123456789abcdefE.llvm.1234567890123", "app::accept"),
            ("_ZN3app6accept17h0123456789abcdefE.cold.1", "app::accept"),
            ("_ZN3app6accept17h0123456789abcdefE.part.0", "app::accept"),
            (
                "_ZN3app11handle_conn28_$u7b$$u7b$closure$u7d$$u7d$17h00112233445566ffE",
                "app::handle_conn::{{closure}}",
            ),
            (
                "_ZN57_$LT$app..Foo$u20$as$u20$core..future..future..Future$GT$4poll17h00112233445566ffE",
                "<app::Foo as core::future::future::Future>::poll",
            ),
            ("_RNvCskwGfYPst2Cb_3foo16example_function", "foo::example_function"),
            (
                "_RNvCskwGfYPst2Cb_3foo16example_function.llvm.0123456789ABCDEF",
                "foo::example_function",
            ),
            ("_ZN9wikipedia7article6formatEv", "wikipedia::article::format()"),
            (
                "_ZNSt6vectorIiSaIiEE9push_backERKi",
                "std::vector<int, std::allocator<int> >::push_back(int const&)",
            ),
            ("memcpy@@GLIBC_2.14", "memcpy"),
            ("worker.cold", "worker"),
            ("start_thread", "start_thread"),
            (".cold", ".cold"),
            ("", ""),
            ("_Z", "_Z"),
            ("_R", "_R"),
            ("@", "@"),
        ] {
            assert_eq!(demangle(symbol), name, "{symbol}");
        }
    }

    #[test]
    fn task_types_lose_what_carries_them() {
        let handle = "alloc::sync::Arc<tokio::runtime::scheduler::multi_thread::handle::Handle>";
        for (full, shown) in [
            (
                "app::handle_conn::{{closure}}".to_owned(),
                "app::handle_conn::{{closure}}",
            ),
            (
                format!("tokio::runtime::task::core::Cell<app::handle_conn::{{{{closure}}}},{handle}>"),
                "app::handle_conn::{{closure}}",
            ),
            (
                "tokio::runtime::task::core::Stage<tokio::runtime::blocking::task::BlockingTask<app::f::{{closure}}>>"
                    .to_owned(),
                "app::f::{{closure}}",
            ),
            (
                "tokio_util::task::task_tracker::TrackedFuture<tracing::instrument::Instrumented<app::Foo<u8, u16>>>"
                    .to_owned(),
                "app::Foo<u8, u16>",
            ),
            (
                "core::pin::Pin<alloc::boxed::Box<dyn core::future::future::Future<Output = ()> + core::marker::Send>>"
                    .to_owned(),
                "dyn core::future::future::Future<Output = ()> + core::marker::Send",
            ),
            (
                "alloc::boxed::Box<fn(u8, u16) -> app::Never, alloc::alloc::Global>".to_owned(),
                "fn(u8, u16) -> app::Never",
            ),
            (
                "hyper::Connection<app::Service>".to_owned(),
                "hyper::Connection<app::Service>",
            ),
        ] {
            assert_eq!(task_type(&full), shown, "{full}");
        }
    }

    #[test]
    fn merged_types_are_one_of_several() {
        for (names, shown) in [
            (vec![], None),
            (vec!["a"], Some("a")),
            (vec!["a", "core::pin::Pin<a>"], Some("a")),
            (vec!["a", "b"], Some("one of a, b")),
            (vec!["a", "b", "c"], Some("one of a, b, c")),
            (vec!["a", "b", "c", "d", "e"], Some("one of a, b, c and 2 more")),
        ] {
            let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
            assert_eq!(one_of(&names).as_deref(), shown);
        }
    }

    #[test]
    fn names_are_cut_at_the_bound() {
        let fits = "é".repeat(NAME_CHARS_MAX);
        assert_eq!(cut(&fits), fits);
        assert_eq!(cut(&format!("{fits}x")).chars().count(), NAME_CHARS_MAX);
        assert!(cut(&format!("{fits}x")).ends_with("é…"));
        let long = format!(
            "_ZN{}{}17h0123456789abcdefE",
            2 * NAME_CHARS_MAX,
            "a".repeat(2 * NAME_CHARS_MAX)
        );
        let name = demangle(&long);
        assert_eq!(name.chars().count(), NAME_CHARS_MAX);
        assert!(name.starts_with("aaa") && name.ends_with('…'));
        let huge = format!(
            "_ZN{}{}17h0123456789abcdefE",
            MANGLED_BYTES_MAX,
            "a".repeat(MANGLED_BYTES_MAX)
        );
        assert!(demangle(&huge).starts_with("_ZN16384aaa"));
        // Eleven back references, each doubling: two to the power of forty types when written out.
        let bomb = format!("_RIC0{}E", "TpTB3_B3_ETB3_B3_E".repeat(40));
        assert!(demangle(&bomb).chars().count() <= NAME_CHARS_MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_bounded(text in "(_ZN|_R|_Z)?[ -~éA-Z0-9_$.<>]{0,200}") {
            prop_assert!(demangle(&text).chars().count() <= NAME_CHARS_MAX);
            prop_assert!(task_type(&text).chars().count() <= NAME_CHARS_MAX);
        }

        #[test]
        fn a_bounded_writer_keeps_a_prefix(pieces in proptest::collection::vec("[a-zé]{0,300}", 0..10)) {
            let whole = pieces.concat();
            let text = bounded(|out| pieces.iter().try_for_each(|piece| out.write_str(piece)));
            prop_assert_eq!(text, cut(&whole));
        }
    }
}
