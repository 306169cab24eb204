//! Attaching the programs to probe sites.
//!
//! In: a plan's sites and an open image. Out: links, held until the image is no longer watched. It says what is attached where, and keeps
//! the links; the attaching itself is done on a thread (`attaching`).

use super::{
    attaching::{Attacher, Hook, Order, Outcome, Probe},
    load::{Kernel, KernelError, program},
    pins::{PinError, Pins},
};
use crate::targets::plan::{ProbePlan, ProbeSite};
use aya::{
    Ebpf,
    programs::{
        UProbe,
        links::FdLink,
        uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
    },
};
use leakmon_ebpf::abi::{Condition, Cookie, Kind, Role};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
};

const BIRTH: &str = "task_birth";
const END: &str = "task_end";
const ENTRY: &str = "process_entry";
const EMPTY: &str = "empty";
/// All programs that are attached to images.
pub(super) const PROGRAMS: [&str; 4] = [BIRTH, END, ENTRY, EMPTY];

/// Links of an image's attached sites. Closing one takes a kernel grace period, so they are closed off the main path
/// (`detach`).
#[derive(Debug, Default)]
pub struct Links {
    /// Of the entry point. Before the sites, since links are closed in this order: a leakmon that is killed soon stops holding.
    entry: Option<UProbeLink>,
    /// Of probe sites, by their index in the plan.
    sites: BTreeMap<usize, UProbeLink>,
    /// Sites whose links are pinned, and so are not this process's to hold.
    pinned: BTreeSet<usize>,
    /// Links that were pinned until they were taken out of use.
    released: Vec<FdLink>,
}

impl Links {
    /// Closes the links, as many at once as there are lanes, and returns when the probes are gone.
    pub(super) fn close(self, lanes: usize) {
        let Self {
            entry, sites, released, ..
        } = self;
        drop(entry);
        let (mut sites, mut released) = (sites.into_values(), released.into_iter());
        let each = (sites.len() + released.len()).div_ceil(lanes);
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                let lane: (Vec<_>, Vec<_>) = (
                    sites.by_ref().take(each).collect(),
                    released.by_ref().take(each).collect(),
                );
                if !lane.0.is_empty() || !lane.1.is_empty() {
                    scope.spawn(move || drop(lane));
                }
            }
        });
    }
}

/// Who an image is to the programs, and for whom its sites count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageNumber {
    /// Below [`Cookie::IMAGES_MAX`].
    pub number: u32,
    /// Whether all processes of the image are targets, not only those that are watched by number.
    pub every_process: bool,
}

/// What attaching an image's sites came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    /// Indices of the attached sites in the plan.
    pub sites: Vec<usize>,
    /// Sites that were refused, each with its reason.
    pub refused: Vec<(usize, String)>,
}

/// The cookie of site `index` of a plan.
#[must_use]
pub fn cookie(plan: &ProbePlan, index: usize, image: ImageNumber) -> Option<Cookie> {
    let site = plan.sites.get(index)?;
    let site_number = u32::try_from(index).ok().filter(|number| *number < Cookie::SITES_MAX)?;
    let number = Some(image.number).filter(|number| *number < Cookie::IMAGES_MAX)?;
    let kind = site
        .task_type
        .and_then(|index| plan.task_types.get(index))
        .map_or(Kind::Task, |task_type| task_type.kind);
    let cookie = Cookie::new(site.register, site.role, site.condition, kind, site_number, number);
    let cookie = match site.role {
        Role::Birth => cookie.with_vtable_word(vtable_word(plan, site)),
        _ => cookie,
    };
    Some(if image.every_process {
        cookie.for_every_process()
    } else {
        cookie
    })
}

/// Which word of the header of what is born at a site points to the vtable; 0 where its types don't agree.
fn vtable_word(plan: &ProbePlan, site: &ProbeSite) -> u8 {
    let own = site.task_type.and_then(|index| plan.task_types.get(index));
    let mut types = own.map_or(&plan.task_types[..], std::slice::from_ref).iter();
    let Some(first) = types.next() else { return 0 };
    let same = types.all(|other| other.vtable_offset == first.vtable_offset);
    let word = u8::try_from(first.vtable_offset / 8).unwrap_or_default();
    if same { word } else { 0 }
}

/// What came of attaching an image.
pub type ImageOutcome = Outcome<UProbeLink>;

/// What attaches with these programs.
pub(super) fn attacher(mut ebpf: Ebpf) -> Result<Attacher<UProbeLink>, KernelError> {
    Attacher::start(move |path, hook| {
        let uprobe: &mut UProbe = program(&mut ebpf, hook.program).map_err(|error| chain(&error))?;
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(hook.file_offset),
            cookie: Some(hook.cookie.0),
        };
        uprobe
            .attach(point, path, UProbeScope::AllProcesses)
            .and_then(|id| uprobe.take_link(id))
            .map_err(|error| chain(&error))
    })
}

impl Kernel {
    /// Has all sites of a plan attached to the image that `file` has open; [`Self::outcome`] tells when it is done. Ends are attached
    /// before births, so that no task is seen to be born whose end can't be seen. A site that can't be attached is reported,
    /// not fatal.
    ///
    /// # Errors
    /// Where no more can wait.
    pub fn attach(&mut self, plan: &ProbePlan, file: &File, image: ImageNumber) -> Result<(), KernelError> {
        self.note_image(plan, image)?;
        let pinned = self.pins.as_ref().map(Pins::links).unwrap_or_default();
        let entry = plan
            .entry_file_offset
            .filter(|_| !pinned.contains(&entry_name(image.number)));
        let entry = entry.map(|file_offset| Hook {
            program: ENTRY,
            file_offset,
            cookie: entry_cookie(image),
        });
        self.links.insert(image.number, Links::default());
        let all: Vec<usize> = (0..plan.sites.len()).collect();
        self.order(plan, file, image, &all, entry)
    }

    /// Whether [`Self::attach`] has room for another image.
    #[must_use]
    pub const fn can_attach(&self) -> bool {
        self.attacher.has_room()
    }

    /// The next image of which all has been attached that could be; `None` where no image ever will be. Safe to drop half-way.
    pub async fn outcome(&mut self) -> Option<ImageOutcome> {
        self.attacher.outcome().await
    }

    /// Takes over the links of an outcome, and pins them where that is wanted.
    ///
    /// # Errors
    /// Without the entry point the image can't be watched.
    pub fn keep(&mut self, outcome: ImageOutcome) -> Result<Attached, String> {
        let Outcome { number, entry, sites } = outcome;
        let links = self.links.entry(number).or_default();
        let pins = self.pins.as_ref();
        let keep = |link, name: &str| keep(link, pins, name).map_err(|error| chain(&error));
        if let Some(link) = entry {
            links.entry = link.and_then(|link| keep(link, &entry_name(number)))?;
        }
        let mut refused = Vec::new();
        for (index, link) in sites {
            match link.and_then(|link| keep(link, &site_name(number, index))) {
                Ok(Some(link)) => _ = links.sites.insert(index, link),
                Ok(None) => _ = links.pinned.insert(index),
                Err(reason) => refused.push((index, reason)),
            }
        }
        let sites = links.sites.keys().chain(&links.pinned).copied().collect();
        Ok(Attached { sites, refused })
    }

    /// Attaches nothing any more, and keeps what has been attached of what was under way: the numbers of those images.
    #[must_use]
    pub fn stop_attaching(&mut self) -> Vec<u32> {
        let outcomes = self.attacher.stop().into_iter();
        let keep = |outcome: ImageOutcome| {
            let number = outcome.number();
            let _whatever_it_is = self.keep(outcome);
            number
        };
        outcomes.map(keep).collect()
    }

    /// Takes the probes of births off an image: they are gone where what is returned has been dropped, which takes long. Ends go on being
    /// seen.
    #[must_use]
    pub fn take_births(&mut self, number: u32, plan: &ProbePlan) -> Links {
        let mut taken = Links::default();
        let Some(links) = self.links.get_mut(&number) else {
            return taken;
        };
        for (index, _) in plan
            .sites
            .iter()
            .enumerate()
            .filter(|(_, site)| site.role == Role::Birth)
        {
            if let Some(link) = links.sites.remove(&index) {
                taken.sites.insert(index, link);
            }
            let pins = self.pins.as_ref().filter(|_| links.pinned.contains(&index));
            if let Some(link) = pins.and_then(|pins| pins.release(&site_name(number, index))) {
                links.pinned.remove(&index);
                taken.released.push(link);
            }
        }
        taken
    }

    /// Has the probes of births put back that [`Self::take_births`] took off, those among `sites` (indices in the plan). They must be
    /// gone, else a birth would be counted twice. [`Self::outcome`] tells when it is done.
    ///
    /// # Errors
    /// Where no more can wait.
    pub fn attach_births(
        &mut self,
        plan: &ProbePlan,
        file: &File,
        number: u32,
        sites: &[usize],
    ) -> Result<(), KernelError> {
        let is_birth = |index: &usize| plan.sites.get(*index).is_some_and(|site| site.role == Role::Birth);
        let births: Vec<usize> = sites.iter().copied().filter(is_birth).collect();
        let every_process = self.images.get(&number).is_some_and(|image| image.every_process != 0);
        self.order(plan, file, ImageNumber { number, every_process }, &births, None)
    }

    /// Orders the sites with these indices, ends first. Those that are pinned already are there.
    fn order(
        &mut self,
        plan: &ProbePlan,
        file: &File,
        image: ImageNumber,
        indices: &[usize],
        entry: Option<Hook>,
    ) -> Result<(), KernelError> {
        let pinned = self.pins.as_ref().map(Pins::links).unwrap_or_default();
        let links = self.links.entry(image.number).or_default();
        let mut probes = Vec::new();
        for role in [Role::Freed, Role::End, Role::Birth] {
            let program = match (self.settings.empty_programs, role) {
                (true, _) => EMPTY,
                (false, Role::Birth) => BIRTH,
                (false, Role::End | Role::Freed) => END,
            };
            let sites = indices
                .iter()
                .filter_map(|index| Some((*index, plan.sites.get(*index)?)));
            for (index, site) in sites.filter(|(_, site)| site.role == role) {
                if pinned.contains(&site_name(image.number, index)) {
                    links.pinned.insert(index);
                    continue;
                }
                probes.push(Probe {
                    index,
                    site: site.clone(),
                    program,
                    cookie: cookie(plan, index, image),
                });
            }
        }
        self.attacher.order(Order {
            number: image.number,
            file: file.try_clone().map_err(KernelError::File)?,
            entry,
            probes,
        })
    }

    /// Takes an image's probes out of use: they are detached where the returned links are dropped, which takes long.
    #[must_use]
    pub fn take_links(&mut self, number: u32) -> Option<Links> {
        self.drop_image(number);
        self.links.remove(&number)
    }

    /// Takes one site of an image out of use; as [`Self::take_links`].
    #[must_use]
    pub fn take_site(&mut self, number: u32, index: usize) -> Option<Links> {
        let links = self.links.get_mut(&number)?;
        if links.pinned.remove(&index) {
            if let Some(pins) = &self.pins {
                pins.remove_link(&site_name(number, index));
            }
            return Some(Links::default());
        }
        let link = links.sites.remove(&index)?;
        Some(Links {
            sites: BTreeMap::from([(index, link)]),
            ..Links::default()
        })
    }

    /// How many sites are attached.
    #[must_use]
    pub fn attached_sites(&self) -> usize {
        self.links
            .values()
            .map(|links| links.sites.len() + links.pinned.len())
            .sum()
    }
}

/// What the program finds that sees a process at its entry point.
fn entry_cookie(image: ImageNumber) -> Cookie {
    let cookie = Cookie::new(0, Role::Birth, Condition::Always, Kind::Task, 0, image.number);
    if image.every_process {
        cookie.for_every_process()
    } else {
        cookie
    }
}

/// Gives a link back to be held, or has it pinned: then it stays when this process ends.
fn keep(link: UProbeLink, pins: Option<&Pins>, name: &str) -> Result<Option<UProbeLink>, KernelError> {
    let Some(pins) = pins else {
        return Ok(Some(link));
    };
    let link = FdLink::try_from(link).map_err(|error| PinError::NoDescriptor(error.to_string()))?;
    pins.keep(link, name)?;
    Ok(None)
}

fn site_name(image: u32, index: usize) -> String {
    format!("i{image}_s{index}")
}

fn entry_name(image: u32) -> String {
    format!("i{image}_entry")
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
