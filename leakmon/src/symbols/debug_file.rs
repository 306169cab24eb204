//! Separate debug files: where a stripped image's names and lines are kept.
//!
//! In: an image's facts, and the root of the process that maps it. Out: the debug file, open and proven to belong to
//! the image. It looks inside the process's root first, then on the host. It reads no DWARF.
//!
//! The places are gdb's (Debugging with GDB, "Debugging Information in Separate Files"):
//! `DIR/.build-id/ab/cdef.debug`; beside the image, in `.debug/` beside it, and in `DIR/` followed by the image's own
//! directory.

use super::image::Image;
use crate::targets::processes::open_in_root;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

/// Directories of debug files unless configured otherwise: Debian's, Fedora's and nearly everybody's.
pub const DEBUG_DIRECTORIES: [&str; 1] = ["/usr/lib/debug"];
/// Directories that are searched at most.
pub const DEBUG_DIRECTORIES_MAX: usize = 16;
/// Bytes of a debug file whose checksum is computed: it is read whole, which takes some 0.2 s for this much.
const CHECKSUM_BYTES_MAX: u64 = 256 << 20;

/// Finds the debug file of `image`. `directories` are absolute; those beyond [`DEBUG_DIRECTORIES_MAX`] are not
/// searched.
#[must_use]
pub fn find(image: &Image, process_root: Option<&File>, directories: &[PathBuf]) -> Option<(Image, File)> {
    let host_root = File::open("/").ok();
    let candidates = candidates(image, directories);
    for root in process_root.into_iter().chain(&host_root) {
        for candidate in &candidates {
            if let Ok(file) = open_in_root(root, candidate)
                && let Ok(found) = Image::read(&file, candidate)
                && belongs(image, &found, &file)
            {
                return Some((found, file));
            }
        }
    }
    None
}

/// Where the debug file may be, best first.
fn candidates(image: &Image, directories: &[PathBuf]) -> Vec<PathBuf> {
    let directories = &directories[..directories.len().min(DEBUG_DIRECTORIES_MAX)];
    let mut paths = Vec::new();
    if let Some((first, rest)) = image.build_id.as_deref().and_then(|id| id.split_at_checked(2))
        && !rest.is_empty()
    {
        paths.extend(
            directories
                .iter()
                .map(|directory| directory.join(format!(".build-id/{first}/{rest}.debug"))),
        );
    }
    if let Some((name, _)) = &image.debug_link
        && let Some(parent) = image.path.parent()
    {
        paths.push(parent.join(name));
        paths.push(parent.join(".debug").join(name));
        let below: PathBuf = parent
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        paths.extend(directories.iter().map(|directory| directory.join(&below).join(name)));
    }
    paths.retain(|path| path != Path::new(&image.path));
    paths
}

/// Whether `found` is the debug file of `image`: by build id, or by checksum where the image has no build id.
fn belongs(image: &Image, found: &Image, file: &File) -> bool {
    if found.segments.is_empty() || found.debug_bytes == 0 || found.key == image.key {
        return false;
    }
    match (&image.build_id, &image.debug_link) {
        (Some(build_id), _) => found.build_id.as_ref() == Some(build_id),
        (None, Some((_, expected))) => found.key.size <= CHECKSUM_BYTES_MAX && checksum(file) == Some(*expected),
        (None, None) => false,
    }
}

/// CRC-32 as `.gnu_debuglink` has it (the reflected polynomial 0xEDB88320, as in zlib).
fn checksum(file: &File) -> Option<u32> {
    const TABLE: [u32; 256] = crc_table();
    let mut crc = u32::MAX;
    let mut buffer = vec![0; 1 << 16];
    let mut reader = file.take(CHECKSUM_BYTES_MAX);
    loop {
        let read = reader.read(&mut buffer).ok()?;
        if read == 0 {
            return Some(!crc);
        }
        for byte in &buffer[..read] {
            crc = TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8);
        }
    }
}

const fn crc_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                0xedb8_8320 ^ (value >> 1)
            } else {
                value >> 1
            };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};
    use std::process::Command;

    fn run(program: &str, arguments: &[&Path]) {
        let status = Command::new(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}");
    }

    /// A root with `/app/service` stripped, and its debug file beside it, found by name and checksum alone.
    fn split_image(root: &Path) -> (Image, PathBuf) {
        let (service, debug) = (root.join("app/service"), root.join("app/service.debug"));
        std::fs::create_dir_all(root.join("app")).unwrap();
        std::fs::copy(std::env::current_exe().unwrap(), &service).unwrap();
        run("objcopy", &[Path::new("--only-keep-debug"), &service, &debug]);
        run(
            "objcopy",
            &[
                Path::new("--strip-all"),
                Path::new("--remove-section=.note.gnu.build-id"),
                &service,
            ],
        );
        let link = PathBuf::from(format!("--add-gnu-debuglink={}", debug.display()));
        run("objcopy", &[&link, &service]);
        (
            Image::read(&File::open(&service).unwrap(), Path::new("/app/service")).unwrap(),
            debug,
        )
    }

    #[test]
    fn the_checksum_is_the_one_of_zlib() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"123456789").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        assert_eq!(checksum(&file), Some(0xcbf4_3926));
    }

    #[test]
    fn a_debug_link_is_followed_inside_the_root_and_only_if_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let (mut image, debug) = split_image(folder.path());
        let root = File::open(folder.path()).unwrap();
        let directories = [PathBuf::from("/debug")];
        image.build_id = None;
        assert!(find(&image, Some(&root), &directories).is_some());
        for place in ["app/.debug", "debug/app"] {
            let moved = folder.path().join(place).join("service.debug");
            std::fs::create_dir_all(moved.parent().unwrap()).unwrap();
            std::fs::rename(&debug, &moved).unwrap();
            let (found, _) = find(&image, Some(&root), &directories).expect(place);
            assert!(found.debug_bytes > 1_000_000);
            std::fs::rename(&moved, &debug).unwrap();
        }
        assert!(find(&image, None, &directories).is_none(), "the host has no such path");
        image.build_id = Some("abcdef".into());
        assert!(find(&image, Some(&root), &directories).is_none(), "another build");
        image.build_id = None;
        image.debug_link.as_mut().unwrap().1 ^= 1;
        assert!(find(&image, Some(&root), &directories).is_none(), "another checksum");
    }

    #[test]
    fn a_build_id_is_looked_up_in_every_directory() {
        let folder = tempfile::tempdir().unwrap();
        let path = std::env::current_exe().unwrap();
        let mut image = Image::read(&File::open(&path).unwrap(), &path).unwrap();
        let Some(build_id) = image.build_id.clone() else {
            panic!("the linker here writes no build id");
        };
        image.key.inode = 0;
        let directory = folder.path().join(format!("b/.build-id/{}", &build_id[..2]));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::copy(&path, directory.join(format!("{}.debug", &build_id[2..]))).unwrap();
        let root = File::open(folder.path()).unwrap();
        assert!(find(&image, Some(&root), &["/a".into(), "/b".into()]).is_some());
        assert!(find(&image, Some(&root), &["/a".into()]).is_none());
        let mut many = vec![PathBuf::from("/a"); DEBUG_DIRECTORIES_MAX];
        many.push("/b".into());
        assert!(find(&image, Some(&root), &many).is_none(), "beyond the bound");
    }

    #[test]
    fn short_build_ids_name_no_file() {
        let path = std::env::current_exe().unwrap();
        let mut image = Image::read(&File::open(&path).unwrap(), &path).unwrap();
        for build_id in ["", "a", "ab", "é"] {
            image.build_id = Some(build_id.into());
            assert_eq!(candidates(&image, &["/d".into()]), Vec::<PathBuf>::new(), "{build_id}");
        }
    }
}
