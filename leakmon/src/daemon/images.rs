//! The images that are watched: their plans, open files and attached sites.
//!
//! In: plans from `targets`, attach outcomes from `kernel`. Out: what a cookie or a process's executable stands for.

use crate::{
    kernel::{attach::Attached, clock::monotonic_ns},
    memory::program::Program,
    symbols::{self, address_space::Place, image::ImageFile},
    targets::{
        identity::FileKey,
        plan::{ProbePlan, ProbeSite, TaskType},
    },
};
use leakmon_ebpf::abi::{Cookie, Role};
use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::MetadataExt, sync::Arc};

/// Images that can be watched at once.
pub(super) const IMAGES_MAX: usize = 1024;

/// Numbers are given in turn, so that one is given again only long after the probes of its last image have gone. The last of those
/// that fit into a cookie is no image's.
const NUMBERS: u32 = Cookie::IMAGES_MAX - 1;

/// Files by which one image is known at most: each container that runs it may mount it anew.
const NAMES_MAX: usize = 1024;

/// One watched image.
#[derive(Debug)]
pub(super) struct Image {
    /// Where it is probed.
    pub(super) plan: ProbePlan,
    /// The file that was analysed, held open for its names; what the probes hang on.
    file: Arc<ImageFile>,
    /// Which sites are attached.
    pub(super) attached: Attached,
    /// When they were: what has been a target since has no older tasks.
    pub(super) attached_ns: u64,
    /// How its tasks are found in memory, or why they can't be.
    pub(super) program: Result<Arc<Program>, String>,
    /// Whether somebody asked for it: such an image stays when no process runs it any more.
    pub(super) is_named: bool,
    /// The file under all its mounts, as it was when it was analysed.
    names: Vec<FileKey>,
}

impl Image {
    /// An image whose sites are attached.
    ///
    /// # Errors
    /// The file's metadata can't be read.
    pub(super) fn new(plan: ProbePlan, file: File, attached: Attached) -> io::Result<Self> {
        let image = Arc::new(symbols::image::Image::read(&file, &plan.path)?);
        let entry = plan.entry_file_offset.and_then(|offset| image.address_of(offset));
        let program = entry.ok_or_else(|| "it has no entry point".to_owned());
        let program = program.and_then(|entry| Program::new(&plan, entry).map_err(|error| error.to_string()));
        Ok(Self {
            program: program.map(Arc::new),
            plan,
            is_named: true,
            names: vec![FileKey::of(&file.metadata()?)],
            file: Arc::new(ImageFile {
                image,
                file,
                debug: None,
            }),
            attached,
            attached_ns: monotonic_ns(),
        })
    }

    /// The file that was analysed.
    #[must_use]
    pub(super) fn open_file(&self) -> &File {
        &self.file.file
    }

    /// The file under all its mounts.
    #[must_use]
    pub(super) fn names(&self) -> &[FileKey] {
        &self.names
    }

    /// Whether no path leads to the file any more, so that no new process can run it.
    #[must_use]
    pub(super) fn is_deleted(&self) -> bool {
        self.open_file().metadata().is_ok_and(|metadata| metadata.nlink() == 0)
    }

    fn is_file(&self, device: u64, inode: u64) -> bool {
        self.names
            .iter()
            .any(|name| (name.device, name.inode) == (device, inode))
    }

    /// A place in the file, to be symbolised.
    #[must_use]
    pub(super) fn place(&self, offset: u64) -> Place {
        Place::Image {
            image: Arc::clone(&self.file.image),
            file: Some(Arc::clone(&self.file)),
            offset,
        }
    }

    /// The part of the file that is loaded in one piece with this offset.
    #[must_use]
    pub(super) fn segment_of(&self, offset: u64) -> Option<Range<u64>> {
        let segments = self.file.image.segments.iter();
        segments
            .map(|segment| segment.file_offset..segment.file_offset.saturating_add(segment.size))
            .find(|range| range.contains(&offset))
    }

    /// How many attached sites have this role.
    #[must_use]
    pub(super) fn attached_of(&self, role: Role) -> u64 {
        self.attached_sites().filter(|site| site.role == role).count() as u64
    }

    /// How many attached sites the kernel single-steps.
    #[must_use]
    pub(super) fn attached_slow(&self) -> u64 {
        self.attached_sites().filter(|site| !site.cheap).count() as u64
    }

    /// Why not everything is followed, one sentence; `None` where everything is.
    #[must_use]
    pub(super) fn shortfall(&self) -> Option<String> {
        let refused = self.attached.refused.first();
        let reason = refused.map(|(_, reason)| reason).or(self.plan.problems.first())?;
        let count = self.attached.refused.len() + self.plan.problems.len();
        Some(match count {
            1 => reason.clone(),
            _ => format!("{reason} (and {} more)", count - 1),
        })
    }

    fn attached_sites(&self) -> impl Iterator<Item = &ProbeSite> {
        self.attached
            .sites
            .iter()
            .filter_map(|index| self.plan.sites.get(*index))
    }
}

/// All watched images, by their number.
#[derive(Debug, Default)]
pub(super) struct Images {
    images: BTreeMap<u32, Image>,
    last_number: u32,
}

impl Images {
    /// The number that the next image gets; `None` where there is no room.
    #[must_use]
    pub(super) fn next_number(&self) -> Option<u32> {
        let free = |number: &u32| !self.images.contains_key(number);
        (1..=NUMBERS)
            .map(|step| (self.last_number + step) % NUMBERS)
            .find(free)
            .filter(|_| self.images.len() < IMAGES_MAX)
    }

    /// Adds an image under the number that [`Self::next_number`] gave.
    pub(super) fn add(&mut self, number: u32, image: Image) {
        self.last_number = number;
        self.images.insert(number, image);
    }

    /// Leaves out a number that [`Self::next_number`] gave: probes that have it are still to go.
    pub(super) fn pass_over(&mut self, number: u32) {
        self.last_number = number;
    }

    /// Adds an image under the number that it had.
    pub(super) fn put(&mut self, number: u32, image: Image) {
        self.last_number = self.last_number.max(number);
        self.images.insert(number, image);
    }

    /// Takes an image out.
    pub(super) fn remove(&mut self, number: u32) -> Option<Image> {
        self.images.remove(&number)
    }

    /// Notes another mount of an image's file. Beyond the bound its processes are told apart by their hits alone.
    pub(super) fn add_name(&mut self, number: u32, name: FileKey) {
        if let Some(image) = self.images.get_mut(&number)
            && !image.names.contains(&name)
            && image.names.len() < NAMES_MAX
        {
            image.names.push(name);
        }
    }

    /// Notes that an image was found and not asked for.
    pub(super) fn set_found(&mut self, number: u32) {
        if let Some(image) = self.images.get_mut(&number) {
            image.is_named = false;
        }
    }

    /// Whether there is none.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Image> {
        self.images.values()
    }

    /// All of them with their numbers.
    pub(super) fn numbers(&self) -> impl Iterator<Item = (u32, &Image)> {
        self.images.iter().map(|(number, image)| (*number, image))
    }

    /// The image of a number.
    #[must_use]
    pub(super) fn get(&self, number: u32) -> Option<&Image> {
        self.images.get(&number)
    }

    /// The image of a file, and its number.
    #[must_use]
    pub(super) fn find_file(&self, device: u64, inode: u64) -> Option<(u32, &Image)> {
        self.numbers().find(|(_, image)| image.is_file(device, inode))
    }

    /// The image of a file.
    #[must_use]
    pub(super) fn of_file(&self, device: u64, inode: u64) -> Option<&Image> {
        self.find_file(device, inode).map(|(_, image)| image)
    }

    /// Notes since when all births of an image are seen; `u64::MAX`: they are not.
    pub(super) fn set_attached(&mut self, number: u32, at_ns: u64) {
        if let Some(image) = self.images.get_mut(&number) {
            image.attached_ns = at_ns;
        }
    }

    /// The image of a cookie.
    #[must_use]
    pub(super) fn of_cookie(&self, cookie: Cookie) -> Option<&Image> {
        self.images.get(&cookie.image())
    }

    /// Takes a site off the attached ones, with the reason.
    pub(super) fn drop_site(&mut self, site: Cookie, reason: String) {
        self.drop_index(site.image(), site.site() as usize, reason);
    }

    /// The same for a site by its index in the plan of an image.
    pub(super) fn drop_index(&mut self, number: u32, index: usize, reason: String) {
        if let Some(image) = self.images.get_mut(&number) {
            image.attached.sites.retain(|attached| *attached != index);
            image.attached.refused.push((index, reason));
        }
    }

    /// The site of a cookie, and the type of the tasks that are born there.
    #[must_use]
    pub(super) fn site(&self, cookie: Cookie) -> Option<(&ProbeSite, Option<&TaskType>)> {
        let plan = &self.of_cookie(cookie)?.plan;
        let site = plan.sites.get(cookie.site() as usize)?;
        Some((site, site.task_type.and_then(|index| plan.task_types.get(index))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_an_image_that_could_not_be_attached_is_not_the_next_ones() {
        let mut images = Images::default();
        let failed = images.next_number().unwrap();
        images.pass_over(failed);
        assert_ne!(images.next_number(), Some(failed));
        // It comes again in its turn.
        images.pass_over(0);
        assert_eq!(images.next_number(), Some(failed));
    }
}
