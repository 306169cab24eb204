//! Which file an address of a target belongs to.
//!
//! In: `/proc` of a living process. Out: for an address, the image and the offset in its file
//! ([`AddressSpace::place`]), good after the process has ended, since the files are held open in an [`ImageTable`].
//! It names nothing.

use super::image::{Image, ImageFile, ImageKey};
use super::{debug_file, recency::RecencyTable};
use crate::targets::processes::{self, Mapping, ProcessError};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Images that are held open at once, unless configured otherwise. Each costs one or two file descriptors, of which a
/// process may have 1,024 by default (`RLIMIT_NOFILE`).
pub const OPEN_IMAGES_MAX: usize = 256;

/// The images held open, the one used longest ago given up first.
#[derive(Debug)]
pub struct ImageTable {
    files: RecencyTable<ImageKey, Arc<ImageFile>>,
    debug_directories: Vec<PathBuf>,
}

impl ImageTable {
    /// An empty table of at most `open_max` images. Debug files are looked for in `debug_directories`, which are
    /// absolute.
    #[must_use]
    pub fn new(open_max: usize, debug_directories: Vec<PathBuf>) -> Self {
        Self {
            files: RecencyTable::new(open_max, u64::MAX),
            debug_directories,
        }
    }

    /// The open file of an image, unless it was given up.
    pub fn file(&mut self, image: &Image) -> Option<Arc<ImageFile>> {
        self.files.get(&image.key).cloned()
    }

    /// Images open now.
    #[must_use]
    pub fn open_images(&self) -> usize {
        self.files.len()
    }

    /// Closes the files that have been deleted and whose image no address space refers to: nothing can map them any more.
    pub fn release_deleted(&mut self) {
        let is_deleted = |file: &File| file.metadata().is_ok_and(|metadata| metadata.nlink() == 0);
        // One reference is the file's own.
        self.files
            .retain(|kept| Arc::strong_count(&kept.image) > 1 || !is_deleted(&kept.file));
    }

    /// Images given up so far: their addresses keep file name and offset, and get no names unless read anew.
    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.files.evicted()
    }

    /// Takes in a file that a process maps.
    fn take_in(&mut self, tgid: u32, mapping: &Mapping, root: Option<&File>) -> Result<Arc<Image>, ProcessError> {
        let file = processes::open_mapping(tgid, mapping)?;
        let failed = |source| ProcessError::Io {
            tgid,
            what: "maps".to_owned(),
            source,
        };
        let key = ImageKey::of(&file).map_err(failed)?;
        if let Some(known) = self.files.get(&key) {
            return Ok(Arc::clone(&known.image));
        }
        let image = Arc::new(Image::read(&file, &mapping.path).map_err(failed)?);
        let debug = match image.debug_bytes {
            0 => debug_file::find(&image, root, &self.debug_directories),
            _ => None,
        };
        let kept = ImageFile {
            image: Arc::clone(&image),
            file,
            debug,
        };
        self.files.insert(key, Arc::new(kept), 0);
        Ok(image)
    }
}

/// Where an address lies.
#[derive(Clone, Debug)]
pub enum Place {
    /// In an image.
    Image {
        /// Which.
        image: Arc<Image>,
        /// Its file, to be symbolised; `None` where it could not be opened or was given up.
        file: Option<Arc<ImageFile>>,
        /// Offset in the file.
        offset: u64,
    },
    /// In code that is in no file, such as `[vdso]`, or in a file that could not be opened.
    Region {
        /// Name of the region or of the file.
        name: Arc<str>,
        /// Offset in the region, or in the file.
        offset: u64,
    },
    /// In no executable mapping that is known.
    Nowhere {
        /// The address.
        address: u64,
    },
}

/// The executable mappings of one target, as they were when they were read.
#[derive(Clone, Debug, Default)]
pub struct AddressSpace {
    /// By ascending address, not overlapping.
    regions: Vec<Region>,
    refused: u64,
}

#[derive(Clone, Debug)]
struct Region {
    start: u64,
    end: u64,
    file_offset: u64,
    name: Arc<str>,
    image: Option<Arc<Image>>,
}

impl AddressSpace {
    /// Reads what process `tgid` maps now, and opens its images. A file that can't be opened loses its names, no
    /// more.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] and whatever else prevents reading `maps`.
    pub fn read(tgid: u32, images: &mut ImageTable) -> Result<Self, ProcessError> {
        let mappings = processes::executable_mappings(tgid)?;
        let root = processes::open_root(tgid).ok();
        let mut space = Self {
            refused: mappings.refused,
            ..Self::default()
        };
        let mut known: HashMap<(u64, u64), Option<Arc<Image>>> = HashMap::new();
        for mapping in mappings.executable {
            let image = match mapping.has_file() {
                false => None,
                true => known
                    .entry((mapping.device, mapping.inode))
                    .or_insert_with(|| images.take_in(tgid, &mapping, root.as_ref()).ok())
                    .clone(),
            };
            let shown = mapping.path.file_name().unwrap_or(mapping.path.as_os_str());
            let name = match &image {
                Some(image) => Arc::clone(&image.name),
                None => super::names::cut(&shown.to_string_lossy()).into(),
            };
            space.regions.push(Region {
                start: mapping.start,
                end: mapping.end,
                file_offset: mapping.file_offset,
                name,
                image,
            });
        }
        // The kernel lists them so; a search must not depend on it.
        space.regions.sort_by_key(|region| region.start);
        Ok(space)
    }

    /// Whether the address is in a mapping that was there: if not, the mappings should be read again.
    #[must_use]
    pub fn contains(&self, address: u64) -> bool {
        self.region(address).is_some()
    }

    /// Where an address lies.
    #[must_use]
    pub fn place(&self, address: u64, images: &mut ImageTable) -> Place {
        let Some(region) = self.region(address) else {
            return Place::Nowhere { address };
        };
        let within = address - region.start;
        match &region.image {
            Some(image) => Place::Image {
                image: Arc::clone(image),
                file: images.file(image),
                offset: region.file_offset.saturating_add(within),
            },
            None => Place::Region {
                name: Arc::clone(&region.name),
                offset: region.file_offset.saturating_add(within),
            },
        }
    }

    /// Lines of `maps` that were not understood or beyond the bound.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    fn region(&self, address: u64) -> Option<&Region> {
        let after = self.regions.partition_point(|region| region.start <= address);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (address < region.end).then_some(region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn own() -> (AddressSpace, ImageTable) {
        let mut images = ImageTable::new(OPEN_IMAGES_MAX, Vec::new());
        (AddressSpace::read(std::process::id(), &mut images).unwrap(), images)
    }

    #[test]
    fn an_address_of_this_test_is_placed_in_its_image() {
        let (space, mut images) = own();
        let address = an_address_of_this_test_is_placed_in_its_image as *const () as u64;
        let Place::Image { image, file, offset } = space.place(address, &mut images) else {
            panic!("not placed");
        };
        let path = std::env::current_exe().unwrap();
        assert_eq!(image.path, path);
        assert_eq!(&*image.name, path.file_name().unwrap().to_str().unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let mut opened = [0; 16];
        std::os::unix::fs::FileExt::read_exact_at(&file.unwrap().file, &mut opened, offset).unwrap();
        assert_eq!(opened, bytes[offset as usize..offset as usize + 16]);
        assert!(image.address_of(offset).is_some());
        assert!(space.contains(address));
        assert_eq!(space.refused(), 0);
    }

    #[test]
    fn what_is_no_file_and_what_is_nowhere_is_said_so() {
        let (space, mut images) = own();
        let vdso = space
            .regions
            .iter()
            .find(|region| &*region.name == "[vdso]")
            .unwrap()
            .start;
        assert!(matches!(space.place(vdso + 5, &mut images), Place::Region { name, offset: 5 } if &*name == "[vdso]"));
        assert!(matches!(space.place(8, &mut images), Place::Nowhere { address: 8 }));
        assert!(matches!(space.place(u64::MAX, &mut images), Place::Nowhere { .. }));
    }

    #[test]
    fn images_are_shared_and_bounded() {
        let (space, mut images) = own();
        let again = AddressSpace::read(std::process::id(), &mut images).unwrap();
        let all = |space: &AddressSpace| space.regions.iter().filter_map(|r| r.image.clone()).collect::<Vec<_>>();
        assert!(
            all(&space)
                .iter()
                .zip(&all(&again))
                .all(|(one, two)| Arc::ptr_eq(one, two))
        );
        assert_eq!(images.evicted(), 0);
        let different = images.open_images();
        assert!(different >= 2, "the test and libc");

        let mut one = ImageTable::new(1, Vec::new());
        let space = AddressSpace::read(std::process::id(), &mut one).unwrap();
        assert_eq!((one.open_images(), one.evicted()), (1, different as u64 - 1));
        let open = all(&space).iter().filter(|image| one.file(image).is_some()).count();
        assert!(open >= 1 && open < all(&space).len());
    }

    proptest! {
        #[test]
        fn the_search_finds_what_a_scan_finds(gaps in proptest::collection::vec((1_u64..50, 1_u64..50), 0..20),
            address in 0_u64..2_200) {
            let mut regions = Vec::new();
            let mut at = 0;
            for (gap, size) in gaps {
                let start = at + gap - 1;
                regions.push(Region { start, end: start + size, file_offset: 0, name: "".into(), image: None });
                at = start + size;
            }
            let scanned = regions.iter().find(|region| (region.start..region.end).contains(&address)).map(|r| r.start);
            let space = AddressSpace { regions, refused: 0 };
            prop_assert_eq!(space.region(address).map(|region| region.start), scanned);
        }
    }
}
