//! Attaching the programs to probe sites.
//!
//! In: a plan's sites and an open image. Out: links, held until the image is no longer watched. A site is attached only if
//! the image's bytes there are the instruction that was planned; leakmon never guesses an offset.

use super::{
    load::{Kernel, KernelError, program},
    pins::{PinError, Pins},
};
use crate::targets::plan::{ProbePlan, ProbeSite};
use aya::programs::{
    UProbe,
    links::FdLink,
    uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope},
};
use leakmon_ebpf::abi::{Condition, Cookie, Kind, Role};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
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

impl Kernel {
    /// Attaches all sites of a plan to the image that `file` has open. Ends are attached before births, so that no task is
    /// seen to be born whose end can't be seen. A site that can't be attached is reported, not fatal.
    ///
    /// # Errors
    /// Where the programs are not there, or the entry point can't be attached. What is attached by then is for
    /// [`Self::take_links`].
    pub fn attach(&mut self, plan: &ProbePlan, file: &File, image: ImageNumber) -> Result<Attached, KernelError> {
        let path = descriptor_path(file);
        self.note_image(plan, image)?;
        let pinned = self.pins.as_ref().map(Pins::links).unwrap_or_default();
        let mut links = Links::default();
        let all: Vec<usize> = (0..plan.sites.len()).collect();
        let outcome = self.attach_sites(plan, file, image, &all, &mut links);
        // Last: who is seen there is taken for one whose every task is seen.
        let entry = plan
            .entry_file_offset
            .filter(|_| !pinned.contains(&entry_name(image)))
            .map(|file_offset| {
                let link = self.attach_entry(&path, file_offset, image)?;
                keep(link, self.pins.as_ref(), &entry_name(image))
            });
        let entry = entry.transpose().map(|link| links.entry = link.flatten());
        self.links.insert(image.number, links);
        entry.and(outcome)
    }

    /// Takes the probes of births off an image: they are gone where what is returned has been dropped, which takes long. Ends go
    /// on being seen.
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

    /// Puts the probes of births back that [`Self::take_births`] took off, those among `sites` (indices in the plan). They must
    /// be gone, else a birth would be counted twice.
    ///
    /// # Errors
    /// Where the programs are not there.
    pub fn attach_births(
        &mut self,
        plan: &ProbePlan,
        file: &File,
        number: u32,
        sites: &[usize],
    ) -> Result<Attached, KernelError> {
        let is_birth = |index: &usize| plan.sites.get(*index).is_some_and(|site| site.role == Role::Birth);
        let births: Vec<usize> = sites.iter().copied().filter(is_birth).collect();
        let every_process = self.images.get(&number).is_some_and(|image| image.every_process != 0);
        let mut links = self.links.remove(&number).unwrap_or_default();
        let image = ImageNumber { number, every_process };
        let outcome = self.attach_sites(plan, file, image, &births, &mut links);
        self.links.insert(number, links);
        outcome
    }

    /// Attaches the sites with these indices, ends first.
    fn attach_sites(
        &mut self,
        plan: &ProbePlan,
        file: &File,
        image: ImageNumber,
        indices: &[usize],
        links: &mut Links,
    ) -> Result<Attached, KernelError> {
        let path = descriptor_path(file);
        let pinned = self.pins.as_ref().map(Pins::links).unwrap_or_default();
        let mut outcome = Attached::default();
        for role in [Role::Freed, Role::End, Role::Birth] {
            let name = match (self.settings.empty_programs, role) {
                (true, _) => EMPTY,
                (false, Role::Birth) => BIRTH,
                (false, Role::End | Role::Freed) => END,
            };
            let uprobe: &mut UProbe = program(&mut self.ebpf, name)?;
            let sites = indices
                .iter()
                .filter_map(|index| Some((*index, plan.sites.get(*index)?)));
            for (index, site) in sites.filter(|(_, site)| site.role == role) {
                let link_name = site_name(image.number, index);
                if pinned.contains(&link_name) {
                    links.pinned.insert(index);
                    outcome.sites.push(index);
                    continue;
                }
                let attached = verify(site, file).and_then(|()| {
                    let cookie = cookie(plan, index, image).ok_or("the plan has too many sites")?;
                    let location = UProbeAttachLocation::AbsoluteOffset(site.file_offset);
                    let point = UProbeAttachPoint {
                        location,
                        cookie: Some(cookie.0),
                    };
                    let id = uprobe
                        .attach(point, &path, UProbeScope::AllProcesses)
                        .map_err(|error| chain(&error))?;
                    uprobe.take_link(id).map_err(|error| chain(&error))
                });
                let kept =
                    attached.and_then(|link| keep(link, self.pins.as_ref(), &link_name).map_err(|error| chain(&error)));
                match kept {
                    Ok(link) => {
                        match link {
                            Some(link) => _ = links.sites.insert(index, link),
                            None => _ = links.pinned.insert(index),
                        }
                        outcome.sites.push(index);
                    }
                    Err(reason) => outcome.refused.push((index, reason)),
                }
            }
        }
        Ok(outcome)
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

    /// Attaches the program that sees a process at its entry point.
    fn attach_entry(&mut self, path: &Path, file_offset: u64, image: ImageNumber) -> Result<UProbeLink, KernelError> {
        let cookie = Cookie::new(0, Role::Birth, Condition::Always, Kind::Task, 0, image.number);
        let cookie = if image.every_process {
            cookie.for_every_process()
        } else {
            cookie
        };
        let point = UProbeAttachPoint {
            location: UProbeAttachLocation::AbsoluteOffset(file_offset),
            cookie: Some(cookie.0),
        };
        let uprobe: &mut UProbe = program(&mut self.ebpf, ENTRY)?;
        let link = uprobe
            .attach(point, path, UProbeScope::AllProcesses)
            .and_then(|id| uprobe.take_link(id));
        link.map_err(|error| KernelError::Program(ENTRY, error))
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

/// Through the descriptor a probe reaches exactly the file that was analysed, whatever its path names now.
fn descriptor_path(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
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

fn entry_name(image: ImageNumber) -> String {
    format!("i{}_entry", image.number)
}

/// Checks that the file still has the planned instruction at the site's offset.
fn verify(site: &ProbeSite, file: &File) -> Result<(), String> {
    if site.bytes.is_empty() {
        return Err(format!("the plan has no instruction at offset {:#x}", site.file_offset));
    }
    if site.condition != Condition::Always && !site.cheap {
        return Err(format!(
            "the site at offset {:#x} has a condition but is no branch",
            site.file_offset
        ));
    }
    let mut found = vec![0; site.bytes.len()];
    file.read_exact_at(&mut found, site.file_offset)
        .map_err(|error| format!("the image can't be read at offset {:#x}: {error}", site.file_offset))?;
    if found == site.bytes {
        Ok(())
    } else {
        Err(format!("the image has changed at offset {:#x}", site.file_offset))
    }
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
