//! The location of a stack: the innermost frame of the user's code.
//!
//! In: resolved frames, and patterns of code to hide. Out: the index of one frame. Nothing is thrown away: hidden
//! frames stay in the stack, they are just no location.
//!
//! What counts is the crate that *defines* a function. `<app::Foo as core::future::Future>::poll` is the app's,
//! `tokio::task::spawn::spawn::<app::main::{closure#0}>` is tokio's, `<F as tower::Service>::call` is tower's, since
//! only the trait's crate may implement it for every type.

use crate::symbols::ResolvedFrame;

/// Patterns that a user may add.
pub const PATTERNS_MAX: usize = 256;
/// Bytes of one.
pub const PATTERN_BYTES_MAX: usize = 256;
/// Types nested in types that are followed to find a crate.
const DEPTH_MAX: usize = 8;

/// Crates of the runtime and the language: never a location as long as anything else has a name.
const RUNTIME: [&str; 14] = [
    "std",
    "core",
    "alloc",
    "test",
    "tokio",
    "tokio_macros",
    // Allocator and panic shims, and the crates that libstd carries.
    "__rustc",
    "compiler_builtins",
    "panic_unwind",
    "backtrace",
    "std_detect",
    "hashbrown",
    "addr2line",
    "gimli",
];

/// Crates through which others' code is run or spawned: a location only if nothing else is left but the runtime.
/// Whole names, since people call their own crates `axum_shop` and `tower_of_london`.
#[rustfmt::skip]
const WRAPPERS: [&str; 84] = [
    "async_compat", "async_recursion", "async_stream", "async_trait", "axum", "axum_core",
    "axum_extra", "axum_server", "bytes", "console_subscriber", "crossbeam", "crossbeam_channel",
    "crossbeam_deque", "crossbeam_epoch", "crossbeam_utils", "either", "futures", "futures_channel",
    "futures_concurrency", "futures_core", "futures_executor", "futures_io", "futures_lite",
    "futures_sink", "futures_task", "futures_timer", "futures_util", "h2", "h3", "headers", "http",
    "http_body", "http_body_util", "hyper", "hyper_rustls", "hyper_timeout", "hyper_tls",
    "hyper_util", "indexmap", "lock_api", "log", "matchit", "mio", "once_cell", "opentelemetry",
    "opentelemetry_sdk", "parking_lot", "parking_lot_core", "pin_project", "pin_project_lite",
    "pin_utils", "poem", "quinn", "quinn_proto", "rayon", "rayon_core", "reqwest", "rocket",
    "rustls", "salvo", "salvo_core", "scopeguard", "sync_wrapper", "tokio_graceful",
    "tokio_metrics", "tokio_native_tls", "tokio_rustls", "tokio_stream", "tokio_tungstenite",
    "tokio_util", "tonic", "tower", "tower_http", "tower_layer", "tower_service", "tracing",
    "tracing_core", "tracing_futures", "tracing_log", "tracing_opentelemetry", "tracing_subscriber",
    "tungstenite", "want", "warp",
];

/// C functions between the kernel and Rust's `main`, and Rust's own symbols that are in no crate. A star ends a
/// prefix.
const STARTUP: [&str; 12] = [
    "_start",
    "main",
    "__libc_start*",
    "libc_start_main*",
    "start_thread",
    "start",
    "clone",
    "clone3",
    "__clone*",
    "__rust_*",
    "rust_*",
    "_Unwind_*",
];

/// What people call their own wrappers around spawning. Such a function of the user's is the location only if no
/// other function of the user's called it: all its callers would be one callsite otherwise.
const SPAWN_NAMES: [&str; 18] = [
    "spawn",
    "spawn_background",
    "spawn_blocking",
    "spawn_boxed",
    "spawn_cancellable",
    "spawn_critical",
    "spawn_detached",
    "spawn_in",
    "spawn_instrumented",
    "spawn_local",
    "spawn_monitored",
    "spawn_named",
    "spawn_on",
    "spawn_supervised",
    "spawn_task",
    "spawn_traced",
    "spawn_with_name",
    "try_spawn",
];

/// Functions that poll one task, a copy for each type of future (tokio 1.54.1, `runtime/task/{raw,harness,core}.rs`,
/// `runtime/blocking/task.rs`); their last segment is `poll`. Outside of them is code that knows nothing of the task, be it
/// the user's `main`, and where the compiler has inlined the future, its code is in the innermost of them.
const TASK_POLLS: [&str; 2] = ["tokio::runtime::task::", "tokio::runtime::blocking::task::"];

/// Why a pattern was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HideError {
    /// It hides everything or nothing.
    #[error("a pattern of code is empty; name a crate or a path, such as `mycrate` or `mycrate::pool::*`")]
    Empty,
    /// It is too long.
    #[error("the pattern of code `{0}…` is longer than {PATTERN_BYTES_MAX} bytes; name a shorter path with a star")]
    TooLong(String),
    /// There are too many.
    #[error("there are more than {PATTERNS_MAX} patterns of code; join some of them with a star")]
    TooMany,
}

/// Whose code a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The runtime's, the language's, or C code around it.
    Runtime,
    /// A crate's through which others' code is run, or hidden by the user's wish.
    Wrapper,
    /// The user's.
    User,
}

/// What is hidden when a location is chosen.
#[derive(Clone, Debug, Default)]
pub struct HideTable {
    patterns: Vec<String>,
}

impl HideTable {
    /// The built-in table and the user's `patterns`: a crate (`mycrate`), a path (`mycrate::pool`, which hides what
    /// is below as well), or either with stars, each for any text. At most [`PATTERNS_MAX`] of [`PATTERN_BYTES_MAX`]
    /// bytes.
    ///
    /// # Errors
    /// See [`HideError`].
    pub fn new(patterns: impl IntoIterator<Item = String>) -> Result<Self, HideError> {
        let mut table = Self::default();
        for pattern in patterns {
            if pattern.trim_matches(['*', ':', ' ']).is_empty() {
                return Err(HideError::Empty);
            }
            if pattern.len() > PATTERN_BYTES_MAX {
                return Err(HideError::TooLong(pattern.chars().take(32).collect()));
            }
            if table.patterns.len() == PATTERNS_MAX {
                return Err(HideError::TooMany);
            }
            table.patterns.push(pattern);
        }
        Ok(table)
    }

    /// Index of the frame that is the location: the innermost of the user's code; if there is none, the innermost
    /// outside the runtime; else the one that polls the spawning task, which then has the user's code inlined; else the first,
    /// which is the probe site itself. What is outside of the spawning task does not count. 0 for an empty stack.
    #[must_use]
    pub fn location(&self, frames: &[ResolvedFrame]) -> usize {
        let site_image = frames.first().and_then(|frame| frame.image.as_deref());
        let mut wrapper = None;
        let mut spawner = None;
        for (index, frame) in frames.iter().enumerate() {
            let Some(function) = frame.function.as_deref() else {
                continue;
            };
            // C code of another file is libc or what is beneath it, not who spawned.
            let elsewhere = !function.contains("::") && frame.image.as_deref() != site_image;
            match self.owner(function) {
                Owner::User if elsewhere => {}
                Owner::User if is_spawn_wrapper(function) => spawner = spawner.or(Some(index)),
                Owner::User => return index,
                Owner::Wrapper => wrapper = wrapper.or(Some(index)),
                Owner::Runtime if polls_a_task(function) => return spawner.or(wrapper).unwrap_or(index),
                Owner::Runtime => {}
            }
        }
        spawner.or(wrapper).unwrap_or(0)
    }

    /// Whether one of the user's patterns names the function or type `name` (demangled).
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        !self.patterns.is_empty() && self.has_any(&defining_paths(name, 0))
    }

    fn has_any(&self, paths: &[String]) -> bool {
        paths
            .iter()
            .any(|path| self.patterns.iter().any(|pattern| is_at_or_below(pattern, path)))
    }

    /// Whose code the function `name` (demangled) is.
    #[must_use]
    pub fn owner(&self, name: &str) -> Owner {
        let paths = defining_paths(name, 0);
        if self.has_any(&paths) {
            return Owner::Wrapper;
        }
        // Of a type and a trait, one must be known to the other's crate: it is the crate further from the language
        // that wrote the implementation.
        paths
            .iter()
            .map(|path| owner_of_path(path))
            .max()
            .unwrap_or(Owner::Runtime)
    }
}

fn owner_of_path(path: &str) -> Owner {
    let Some((crate_name, _)) = path.split_once("::") else {
        return match STARTUP.iter().any(|pattern| matches_glob(pattern, path)) {
            true => Owner::Runtime,
            false => Owner::User,
        };
    };
    match (RUNTIME.contains(&crate_name), WRAPPERS.contains(&crate_name)) {
        (true, _) => Owner::Runtime,
        (_, true) => Owner::Wrapper,
        _ => Owner::User,
    }
}

/// Whether a function only passes a future on, by its name or as an executor of hyper's.
fn is_spawn_wrapper(name: &str) -> bool {
    defining_paths(name, 0).iter().any(|path| {
        let last = path.rsplit("::").find(|segment| !segment.starts_with('{'));
        SPAWN_NAMES.contains(&last.unwrap_or_default())
            || path.starts_with("hyper::rt::") && path.contains("::Executor::execute")
    })
}

/// Whether a function of the runtime's is one of those that poll a task.
fn polls_a_task(name: &str) -> bool {
    let of_a_task =
        |path: &String| TASK_POLLS.iter().any(|module| path.starts_with(module)) && path.ends_with("::poll");
    name.ends_with("::poll") && defining_paths(name, 0).iter().any(of_a_task)
}

/// The paths, without generic arguments, whose crates may have defined a function: of its own path, or of the type
/// and of the trait that it implements. Empty where the name tells nothing.
fn defining_paths(name: &str, depth: usize) -> Vec<String> {
    if depth > DEPTH_MAX {
        return Vec::new();
    }
    let Some(inside) = name.strip_prefix('<') else {
        return vec![without_arguments(name)];
    };
    let Some(end) = find_at_top(inside, ">") else {
        return Vec::new();
    };
    let rest = without_arguments(&inside[end + 1..]);
    let implemented = &inside[..end];
    let (kind, of_trait) = match find_at_top(implemented, " as ") {
        Some(at) => (&implemented[..at], Some(&implemented[at + 4..])),
        None => (implemented, None),
    };
    let mut heads = type_paths(kind, depth + 1);
    heads.extend(
        of_trait
            .map(|of_trait| type_paths(of_trait, depth + 1))
            .unwrap_or_default(),
    );
    if heads.is_empty() {
        // `<[T]>::sort`, `<str>::len`: only the language implements methods on its own types.
        heads.push("core".to_owned());
    }
    heads.iter().map(|head| format!("{head}{rest}")).collect()
}

/// The paths of a type or trait; empty for what is no path: a type parameter, a tuple, a slice, a function pointer.
fn type_paths(kind: &str, depth: usize) -> Vec<String> {
    const QUALIFIERS: [&str; 6] = ["&", "mut ", "*const ", "*mut ", "dyn ", "impl "];
    let mut kind = kind.trim_start();
    // `'a ` of a reference.
    let lifetime = |kind: &'_ str| {
        kind.strip_prefix('\'')
            .and_then(|name| name.split_once(' '))
            .map(|(_, rest)| rest.len())
    };
    loop {
        let qualified = QUALIFIERS
            .iter()
            .find_map(|qualifier| kind.strip_prefix(qualifier).map(str::len));
        match qualified.or_else(|| lifetime(kind)) {
            Some(rest) => kind = kind[kind.len() - rest..].trim_start(),
            None => break,
        }
    }
    if kind.starts_with('<') {
        return defining_paths(kind, depth);
    }
    if kind.starts_with(['(', '[', '!'])
        || ["fn(", "unsafe ", "extern ", "for<"]
            .iter()
            .any(|word| kind.starts_with(word))
    {
        return Vec::new();
    }
    let end = [" ", "+"]
        .iter()
        .filter_map(|stop| find_at_top(kind, stop))
        .min()
        .unwrap_or(kind.len());
    let path = without_arguments(&kind[..end]);
    if path.contains("::") { vec![path] } else { Vec::new() }
}

/// Where `wanted` first is outside of all brackets. A closing bracket is found where it closes more than was opened.
fn find_at_top(text: &str, wanted: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let bytes = text.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        // The arrow of a function type closes nothing.
        if *byte == b'>' && at > 0 && bytes[at - 1] == b'-' {
            continue;
        }
        if depth == 0 && bytes[at..].starts_with(wanted.as_bytes()) {
            return Some(at);
        }
        match byte {
            b'<' | b'(' | b'[' | b'{' => depth += 1,
            b'>' | b')' | b']' | b'}' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

/// A path without what is in angle brackets: `a::b::<T>::c<U>` becomes `a::b::c`.
fn without_arguments(path: &str) -> String {
    let mut kept = String::with_capacity(path.len());
    let mut depth = 0_usize;
    let mut before = ' ';
    for character in path.chars() {
        match character {
            '<' => {
                if depth == 0 && kept.ends_with("::") {
                    kept.truncate(kept.len() - 2);
                }
                depth += 1;
            }
            '>' if before == '-' => {}
            '>' => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(character),
            _ => {}
        }
        before = character;
    }
    kept
}

/// Whether `path` is what `pattern` names, or below it.
fn is_at_or_below(pattern: &str, path: &str) -> bool {
    let pattern = pattern.strip_suffix("::").unwrap_or(pattern);
    matches_glob(pattern, path)
        || path
            .match_indices("::")
            .any(|(at, _)| matches_glob(pattern, &path[..at]))
}

/// Whether all of `text` is `pattern`, in which each star stands for any text. Time is their lengths' product at
/// worst.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Where to go on with the last star taking one byte more.
    let mut retry = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                retry = Some((at + 1, seen));
                at += 1;
            }
            Some(byte) if *byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((after_star, from)) = retry else { return false };
                retry = Some((after_star, from + 1));
                at = after_star;
                seen = from + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

mod threads;

#[cfg(test)]
mod tests;
