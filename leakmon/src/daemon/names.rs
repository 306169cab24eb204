//! The names of stacks, as far as they are known.
//!
//! In: stacks as the kernel stored them. Out: resolved frames, the location among them, and the callsite's id. Addresses are
//! placed in files at once, while the process lives; naming happens on the symbol thread, and nobody waits for it.

use super::images::Image;
use crate::{
    analysis::Analyst,
    live::StackKey,
    symbols::{
        ResolvedFrame,
        address_space::{AddressSpace, ImageTable, OPEN_IMAGES_MAX, Place},
        callsite::CallsiteId,
        hidden::HideTable,
        resolver::{Limits, RawFrame},
        service::{QUEUE_MAX, Refused, Reply, Request, SymbolService},
    },
};
use anyhow::Context;
use leakmon_ebpf::abi::{Cookie, FRAMES_MAX, Kind, Stack, TargetId, WalkEnd};
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::Receiver;

/// Stacks whose names are kept; as many as `live` remembers.
const STACKS_MAX: usize = crate::live::STACKS_MAX;

/// Debug files that a distribution installs.
const DEBUG_DIRECTORY: &str = "/usr/lib/debug";

/// A target's mappings are read again at most this often.
const REREAD_INTERVAL: Duration = Duration::from_millis(20);

/// What is known of a stack.
#[derive(Debug)]
pub(super) struct StackNames {
    /// Key in the kernel's stack table.
    pub(super) id: u64,
    /// Innermost first.
    pub(super) frames: Vec<ResolvedFrame>,
    /// Index of the frame that a person would call the culprit.
    location: usize,
    /// Whether the walk reached the thread's start.
    pub(super) complete: bool,
    /// The callsite it belongs to.
    pub(super) callsite: CallsiteId,
}

impl StackNames {
    /// The frame that a person would call the culprit.
    pub(super) fn location(&self) -> Option<&ResolvedFrame> {
        self.frames.get(self.location)
    }
}

/// Given to the symbol thread with a stack, and back with its names.
#[derive(Debug)]
struct Token {
    key: StackKey,
    complete: bool,
    kind: &'static str,
    /// Which task type, for the callsite's id.
    task_type: u64,
}

/// The names of all stacks.
pub(super) struct Names {
    hide: HideTable,
    /// What is expected to grow.
    allow: HideTable,
    images: ImageTable,
    spaces: HashMap<TargetId, Space>,
    /// `None` while the symbol thread has it.
    stacks: HashMap<StackKey, Option<StackNames>>,
    pending: usize,
    service: SymbolService<Token>,
    replies: Receiver<Reply<Token>>,
}

/// A target's mappings.
struct Space {
    mappings: AddressSpace,
    read_at: Instant,
}

impl Names {
    pub(super) fn new(hide: &[String], analyst: Analyst) -> anyhow::Result<Self> {
        let (service, replies) = SymbolService::start(QUEUE_MAX, Limits::default(), analyst)
            .context("the symbol thread can't be started")?;
        Ok(Self {
            hide: HideTable::new(hide.iter().cloned())?,
            allow: HideTable::default(),
            images: ImageTable::new(OPEN_IMAGES_MAX, vec![PathBuf::from(DEBUG_DIRECTORY)]),
            spaces: HashMap::new(),
            stacks: HashMap::new(),
            pending: 0,
            service,
            replies,
        })
    }

    /// Takes the patterns of code whose callsites are expected to grow.
    pub(super) fn allow(&mut self, patterns: &[String]) -> anyhow::Result<()> {
        self.allow = HideTable::new(patterns.iter().cloned())?;
        Ok(())
    }

    /// Whether growth is expected of what this function, or this task type, is called.
    pub(super) fn is_allowed(&self, name: &str) -> bool {
        self.allow.is_named(name)
    }

    /// Reads a target's mappings while it lives.
    pub(super) fn see_target(&mut self, target: TargetId) {
        if let Ok(mappings) = AddressSpace::read(target.tgid(), &mut self.images) {
            self.spaces.insert(
                target,
                Space {
                    mappings,
                    read_at: Instant::now(),
                },
            );
        }
    }

    /// Whether names were asked for.
    pub(super) fn knows(&self, key: StackKey) -> bool {
        self.stacks.contains_key(&key)
    }

    /// What is known of a stack, once it has names.
    pub(super) fn of(&self, key: StackKey) -> Option<&StackNames> {
        self.stacks.get(&key)?.as_ref()
    }

    /// Stacks that the symbol thread has.
    pub(super) const fn pending(&self) -> usize {
        self.pending
    }

    /// Stacks that are kept.
    pub(super) fn known_stacks(&self) -> u64 {
        self.stacks.len() as u64
    }

    /// Asks for the names of a stack. Where there is no room it is left out, and the next reading of the counters asks again.
    /// `stored` is `None` where the kernel's stack table was full: then the site alone is known.
    pub(super) fn want(&mut self, key: StackKey, stored: Option<&Stack>, image: Option<&Image>, cookie: Cookie) {
        if self.knows(key) || self.stacks.len() >= STACKS_MAX {
            return;
        }
        let site = image.and_then(|image| Some((image, image.plan.sites.get(cookie.site() as usize)?)));
        let addresses = stored.map_or(&[][..], |stack| {
            stack
                .frames
                .get(..(stack.frames_len as usize).min(FRAMES_MAX))
                .unwrap_or_default()
        });
        self.refresh(key.target, addresses);
        let token = Token {
            key,
            complete: stored.is_some_and(|stack| stack.walk_end == WalkEnd::Root as u32),
            kind: kind_name(cookie),
            task_type: site
                .and_then(|(image, site)| Some(image.plan.task_types.get(site.task_type?)?.vtable))
                .unwrap_or(0),
        };
        let anchor = site.map(|(image, site)| Anchor {
            image,
            file_offset: site.file_offset,
            address: addresses.first().copied(),
        });
        let stack = self.place(key.target, addresses, anchor.as_ref());
        match self.service.submit(Request { token, stack }) {
            Ok(()) => {
                self.stacks.insert(key, None);
                self.pending += 1;
            }
            Err(Refused::Full(_)) => {}
            Err(Refused::Stopped(_)) => tracing::error!("the symbol thread has ended: new stacks get no names"),
        }
    }

    /// Takes one answer of the symbol thread. Waits for ever where none is due. Safe to drop half-way.
    pub(super) async fn replied(&mut self) {
        if self.pending == 0 {
            return std::future::pending().await;
        }
        if let Some(reply) = self.replies.recv().await {
            self.take(reply);
        } else {
            // The thread is gone; what it had stays without names.
            self.pending = 0;
        }
    }

    /// Drops what belongs to targets.
    pub(super) fn forget(&mut self, gone: &BTreeSet<TargetId>) {
        self.spaces.retain(|target, _| !gone.contains(target));
        // What the symbol thread still has is dropped when it answers.
        self.stacks.retain(|key, _| !gone.contains(&key.target));
    }

    /// Drops what was read of a target's mappings.
    pub(super) fn forget_space(&mut self, target: TargetId) {
        self.spaces.remove(&target);
    }

    /// Closes the files of images that have been deleted and that no target maps.
    pub(super) fn release_deleted(&mut self) {
        self.images.release_deleted();
    }

    fn take(&mut self, Reply { token, frames }: Reply<Token>) {
        self.pending -= 1;
        let Some(slot) = self.stacks.get_mut(&token.key) else {
            return;
        };
        let location = match token.kind {
            "thread" => self.hide.thread_location(&frames),
            _ => self.hide.location(&frames),
        };
        let nowhere = ResolvedFrame::default();
        let callsite = CallsiteId::new(token.kind, token.task_type, frames.get(location).unwrap_or(&nowhere));
        *slot = Some(StackNames {
            id: token.key.stack,
            frames,
            location,
            complete: token.complete,
            callsite,
        });
    }

    /// Reads the mappings again where an address is in none of them, unless that was done just now.
    fn refresh(&mut self, target: TargetId, addresses: &[u64]) {
        let current = self.spaces.get(&target).is_some_and(|space| {
            space.read_at.elapsed() < REREAD_INTERVAL
                || addresses.iter().all(|address| space.mappings.contains(*address))
        });
        if !current {
            self.see_target(target);
        }
    }

    fn place(&mut self, target: TargetId, addresses: &[u64], anchor: Option<&Anchor<'_>>) -> Vec<RawFrame> {
        // The site is known from the cookie, whatever became of the process.
        let first = anchor.map(Anchor::site).or_else(|| {
            Some(RawFrame {
                place: self.locate(target, *addresses.first()?, anchor),
                exact: true,
            })
        });
        let rest = addresses.iter().skip(1);
        first
            .into_iter()
            .chain(rest.map(|address| RawFrame {
                place: self.locate(target, *address, anchor),
                exact: false,
            }))
            .collect()
    }

    fn locate(&mut self, target: TargetId, address: u64, anchor: Option<&Anchor<'_>>) -> Place {
        let place = self.spaces.get(&target).map_or(Place::Nowhere { address }, |space| {
            space.mappings.place(address, &mut self.images)
        });
        match place {
            Place::Nowhere { address } => anchor
                .and_then(|anchor| anchor.place(address))
                .unwrap_or(Place::Nowhere { address }),
            known => known,
        }
    }
}

/// A probe site of which both the offset in its file and the address in the process are known: it places the other
/// addresses of its image even when the process has gone.
struct Anchor<'a> {
    image: &'a Image,
    file_offset: u64,
    address: Option<u64>,
}

impl Anchor<'_> {
    /// The site itself.
    fn site(&self) -> RawFrame {
        RawFrame {
            place: self.image.place(self.file_offset),
            exact: true,
        }
    }

    /// An address in the site's own segment; all of a segment is moved by the same distance.
    fn place(&self, address: u64) -> Option<Place> {
        let file_offset = self
            .file_offset
            .checked_add_signed(address.wrapping_sub(self.address?).cast_signed())?;
        let segment = self.image.segment_of(self.file_offset)?;
        segment.contains(&file_offset).then(|| self.image.place(file_offset))
    }
}

/// The word of the JSON contract for the kind of task that a site makes.
pub(super) const fn kind_name(cookie: Cookie) -> &'static str {
    let kind = cookie.kind();
    if kind == Kind::Local as u8 {
        "local"
    } else if kind == Kind::Blocking as u8 {
        "blocking"
    } else if kind == Kind::Thread as u8 {
        "thread"
    } else {
        "task"
    }
}
