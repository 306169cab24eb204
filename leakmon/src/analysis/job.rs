//! What a child does, and what it may cost.
//!
//! In: a stage's functions. Out: plain data that both sides know. It starts nothing.

use serde::{Serialize, de::DeserializeOwned};
use std::{fs::File, io, time::Duration};

/// Answers one request; bytes on both sides.
pub type Work = Box<dyn FnMut(&[u8]) -> Vec<u8>>;

/// One kind of analysis.
#[derive(Debug)]
pub struct Job {
    /// Its name in metrics and messages.
    pub name: &'static str,
    /// Bytes of address space that the child may add to what it has when it is confined, its stack included.
    pub memory_bytes: u64,
    /// Processor time of the child in seconds, all its answers together.
    pub processor_seconds: u64,
    /// How long one answer may take, the child's start included.
    pub answer_time: Duration,
    /// Bytes of one answer.
    pub answer_bytes_max: usize,
    /// Begins the work, before the child is confined: it may open and map the files it was handed, and must not read them.
    pub start: fn(Vec<File>) -> io::Result<Work>,
}

/// Work that takes and gives values. A request that can't be read, which only a broken daemon sends, ends the child.
pub fn answering<Q: DeserializeOwned, A: Serialize>(mut answer: impl FnMut(Q) -> A + 'static) -> Work {
    Box::new(move |bytes| match postcard::from_bytes(bytes) {
        Ok(request) => postcard::to_stdvec(&answer(request)).unwrap_or_default(),
        Err(_) => Vec::new(),
    })
}
