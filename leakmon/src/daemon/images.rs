//! The images that are watched: their plans, open files and attached sites.
//!
//! In: plans from `targets`, attach outcomes from `kernel`. Out: what a cookie or a process's executable stands for.

use crate::{
    kernel::{attach::Attached, clock::monotonic_ns},
    memory::program::Program,
    symbols::{self, address_space::Place, image::ImageFile},
    targets::plan::{ProbePlan, ProbeSite, TaskType},
};
use leakmon_ebpf::abi::{Cookie, Role};
use std::{collections::BTreeMap, fs::File, io, ops::Range, sync::Arc};

/// Images that can be watched at once; the cookie's bits would allow 65,536.
pub(super) const IMAGES_MAX: usize = 1024;

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
            file: Arc::new(ImageFile {
                image,
                file,
                debug: None,
            }),
            attached,
            attached_ns: monotonic_ns(),
        })
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
pub(super) struct Images(BTreeMap<u32, Image>);

impl Images {
    /// The number that the next image gets; `None` where there is no room.
    #[must_use]
    pub(super) fn next_number(&self) -> Option<u32> {
        let next = self.0.last_key_value().map_or(0, |(number, _)| number + 1);
        Some(next).filter(|next| (*next as usize) < IMAGES_MAX)
    }

    /// Adds an image under [`Self::next_number`].
    pub(super) fn add(&mut self, image: Image) {
        if let Some(number) = self.next_number() {
            self.0.insert(number, image);
        }
    }

    /// Adds an image under the number that it had.
    pub(super) fn put(&mut self, number: u32, image: Image) {
        self.0.insert(number, image);
    }

    /// Whether there is none.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Image> {
        self.0.values()
    }

    /// The image of a file.
    #[must_use]
    pub(super) fn of_file(&self, device: u64, inode: u64) -> Option<&Image> {
        self.0
            .values()
            .find(|image| image.plan.image.device == device && image.plan.image.inode == inode)
    }

    /// The image of a cookie.
    #[must_use]
    pub(super) fn of_cookie(&self, cookie: Cookie) -> Option<&Image> {
        self.0.get(&cookie.image())
    }

    /// Takes a site off the attached ones, with the reason.
    pub(super) fn drop_site(&mut self, site: Cookie, reason: String) {
        if let Some(image) = self.0.get_mut(&site.image()) {
            let index = site.site() as usize;
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
