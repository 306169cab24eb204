//! The location of a thread's start: who asked for it, in any language.
//!
//! In: resolved frames of the thread that called `clone`. Out: the index of one frame. What starts threads on others' behalf is
//! hidden: the C library, language runtimes, interpreters.

use super::{HideTable, Owner, matches_glob, polls_a_task};
use crate::symbols::ResolvedFrame;

/// Functions of C that start a thread for whoever called them, wherever they are. A star stands for any text.
#[rustfmt::skip]
const WRAPPERS: [&str; 14] = [
    // POSIX, C11, GLib, libuv, SDL, OpenMP.
    "pthread_create*", "__pthread_create*", "thrd_create*", "g_thread_*", "uv_thread_create*", "SDL_CreateThread*",
    "GOMP_*", "gomp_*",
    // CPython: its functions say nothing of the Python code that called them.
    "Py*", "_Py*", "thread_Py*", "do_start_*thread*",
    // The Go runtime.
    "runtime.*", "runtime/*",
];

/// Their names in C libraries, with the versions that glibc adds.
const CREATION: [&str; 3] = ["pthread_create", "pthread_create@*", "__pthread_create*"];

/// Frames within `pthread_create`: in a static glibc `create_thread` and `__clone_internal` come before `__clone3`.
const CREATION_FRAMES_MAX: usize = 4;

/// What stands for the user's code, from the best answer to the worst; a smaller index is an inner frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answer {
    /// A function of the program's own.
    User,
    /// `main` of the program, which in C is the user's.
    Main,
    /// A crate or function that starts threads for others.
    Wrapper,
    /// The program's own code, without a name.
    Nameless,
    /// A library's.
    Library,
}

impl HideTable {
    /// Index of the frame that asked for a thread: the innermost of the program's own functions that is no wrapper around
    /// starting threads; else its `main`; else the innermost wrapper, nameless code of the program, or a library but the C
    /// library. What `pthread_create` itself calls is the C library's, in a static program too. 0 for an empty stack.
    #[must_use]
    pub fn thread_location(&self, frames: &[ResolvedFrame]) -> usize {
        let mut best: Option<(Answer, usize)> = None;
        // What it calls is the C library, be that in the program itself.
        let is_creation = |name: &str| CREATION.iter().any(|pattern| matches_glob(pattern, name));
        let innermost = frames.iter().take(CREATION_FRAMES_MAX);
        let innermost = innermost.map(|frame| frame.function.as_deref());
        let creation = innermost.rev().position(|name| name.is_some_and(is_creation));
        let within = creation.map_or(0, |from_end| frames.len().min(CREATION_FRAMES_MAX) - 1 - from_end);
        for (index, frame) in frames.iter().enumerate().skip(within) {
            let function = frame.function.as_deref();
            if let Some(answer) = self.answer(frame, function)
                && best.is_none_or(|(known, _)| answer < known)
            {
                best = Some((answer, index));
            }
            // What polls the task is not who asked, as for tasks.
            if best.is_some_and(|(answer, _)| answer == Answer::User) || function.is_some_and(polls_a_task) {
                break;
            }
        }
        best.map_or(0, |(_, index)| index)
    }

    fn answer(&self, frame: &ResolvedFrame, function: Option<&str>) -> Option<Answer> {
        let image = frame.image.as_deref()?;
        if is_system(image) {
            return None;
        }
        if is_library(image) {
            // Rust and C++ code of a library is as much the user's as the program's own; C code there is mostly others'.
            return match function {
                Some(name) if name.contains("::") && self.owner(name) == Owner::User => Some(Answer::User),
                _ => Some(Answer::Library),
            };
        }
        let Some(name) = function else {
            return Some(Answer::Nameless);
        };
        if WRAPPERS.iter().any(|pattern| matches_glob(pattern, name)) {
            return Some(Answer::Wrapper);
        }
        if name == "main" {
            return Some(Answer::Main);
        }
        match self.owner(name) {
            Owner::User => Some(Answer::User),
            Owner::Wrapper => Some(Answer::Wrapper),
            Owner::Runtime => None,
        }
    }
}

/// Shared libraries are called `libNAME.so` or `libNAME.so.N`, programs are not.
fn is_library(image: &str) -> bool {
    image.contains(".so")
}

/// The C library, its loader, the C++ and Java runtimes, and the kernel's own code.
fn is_system(image: &str) -> bool {
    const SYSTEM: [&str; 9] = [
        "[vdso]",
        "ld-linux",
        "ld-musl",
        "libc.",
        "libc-",
        "libpthread",
        "libstdc++",
        "libjvm",
        "libjli",
    ];
    SYSTEM.iter().any(|prefix| image.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(frames: &[(&str, &str)]) -> Vec<ResolvedFrame> {
        let frame = |(image, function): &(&str, &str)| ResolvedFrame {
            function: (!function.is_empty()).then(|| (*function).to_owned()),
            image: Some((*image).into()),
            ..ResolvedFrame::default()
        };
        frames.iter().map(frame).collect()
    }

    #[test]
    fn whoever_asked_for_the_thread_is_named() {
        let table = HideTable::new(Vec::new()).unwrap();
        let libc = [("libc.so.6", "__clone3"), ("libc.so.6", "pthread_create@@GLIBC_2.34")];
        for (rest, expected) in [
            // C: the innermost function, or `main` where it does it itself.
            (&[("server", "start_worker"), ("server", "main")][..], "start_worker"),
            (&[("server", "main"), ("libc.so.6", "__libc_start_main")], "main"),
            // Rust: its `main` is named by its path, and what C calls `main` is not the user's.
            (
                &[
                    ("app", "std::thread::Builder::spawn_unchecked_"),
                    ("app", "std::thread::spawn"),
                    ("app", "app::accept"),
                    ("app", "app::main"),
                    ("app", "main"),
                ],
                "app::accept",
            ),
            (
                &[
                    ("app", "tokio::runtime::blocking::pool::Spawner::spawn_thread"),
                    ("app", "app::main"),
                ],
                "app::main",
            ),
            // An interpreter's own functions are all that there is.
            (
                &[("python3.11", "PyThread_start_new_thread"), ("python3.11", "")],
                "PyThread_start_new_thread",
            ),
            // A library that starts a thread by itself, and one that does so for the program.
            (&[("libfoo.so.1", "foo_init"), ("libc.so.6", "_dl_init")], "foo_init"),
            (&[("libfoo.so.1", "foo_thread"), ("server", "start_pool")], "start_pool"),
            (&[("stripped", ""), ("libc.so.6", "__libc_start_main")], ""),
        ] {
            let stack = frames(&[&libc[..], rest].concat());
            let location = &stack[table.thread_location(&stack)];
            assert_eq!(location.function.as_deref().unwrap_or_default(), expected, "{rest:?}");
            assert_ne!(location.image.as_deref(), Some("libc.so.6"), "{rest:?}");
        }
        assert_eq!(table.thread_location(&[]), 0);
        // In a static program the C library's functions are the program's.
        let inner = [
            "__clone3",
            "__clone_internal",
            "create_thread",
            "pthread_create@GLIBC_2.2.5",
        ];
        for (outer, expected) in [("app::accept", 4), ("main", 4)] {
            let names = inner.iter().chain([&outer]);
            let stack = frames(&names.map(|name| ("app", *name)).collect::<Vec<_>>());
            assert_eq!(table.thread_location(&stack), expected);
        }
        // Who calls a function of his own so is named by it.
        let own = frames(&[("app", "create_thread"), ("app", "main")]);
        assert_eq!(table.thread_location(&own), 0);
    }
}
