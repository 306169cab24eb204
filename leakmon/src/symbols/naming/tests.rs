//! Sizes of debug information, honest and forged.

use super::*;
use std::io::Write;
use std::process::Command;

#[test]
fn compressed_debug_information_is_measured_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let (own, packed) = (std::env::current_exe().unwrap(), folder.path().join("packed"));
    let mut objcopy = Command::new("objcopy");
    objcopy.arg("--compress-debug-sections=zlib").arg(&own).arg(&packed);
    assert!(objcopy.status().unwrap().success());
    let whole = image_of(&File::open(own).unwrap()).unwrap().debug_bytes;
    let file = File::open(packed).unwrap();
    let image = image_of(&file).unwrap();
    assert!(image.debug_bytes < whole && !image.compressed.is_empty());
    assert!(debug_bytes(&image, &file, u64::MAX / 2).unwrap() >= whole);
    assert_eq!(debug_bytes(&image, &file, whole - 1), None);
}

#[test]
fn a_compressed_section_that_lies_about_its_size_is_refused() {
    for (claimed, method, max, expected) in [
        (1_000_u64, 1_u32, 10_000, None),
        (100_000, 1, 200_000, Some(100_000)),
        (100_000, 1, 99_999, None),
        (1 << 40, 1, 200_000, None),
        (100_000, 2, 200_000, None),
    ] {
        let mut file = tempfile::tempfile().unwrap();
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&vec![0; 100_000]).unwrap();
        let packed = encoder.finish().unwrap();
        let header = [&method.to_le_bytes()[..], &[0; 4], &claimed.to_le_bytes(), &[0; 8]].concat();
        file.write_all(&[&header[..], &packed].concat()).unwrap();
        let section = CompressedSection {
            debug: true,
            file_offset: 0,
            size: (header.len() + packed.len()) as u64,
        };
        assert_eq!(
            decompressed_bytes(&section, &file, max),
            expected,
            "{claimed} {method} {max}"
        );
    }
}
