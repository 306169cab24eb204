//! Any bytes, searched for probe sites.
//!
//! In: an ELF file, or what was one. Checked: no panic; and a planned site lies in the file where the plan says, with
//! the bytes that the plan says, since those are compared before a probe is attached.
#![no_main]

use leakmon::targets::analyse_bytes;
use leakmon::targets::plan::ImageId;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|bytes: &[u8]| {
    let id = ImageId {
        device: 1,
        inode: 1,
        build_id: String::new(),
    };
    let plan = match analyse_bytes(bytes, Path::new("fuzzed"), id) {
        Ok(plan) => plan,
        // Every error can be told.
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for site in &plan.sites {
        let from = &bytes[site.file_offset as usize..];
        assert!(!site.bytes.is_empty() && from.starts_with(&site.bytes), "{site:?}");
        assert!(site.register < 16, "{site:?}");
        assert!(
            site.task_type.is_none_or(|index| index < plan.task_types.len()),
            "{site:?}"
        );
    }
    assert!(plan.task_types.is_sorted_by_key(|task_type| task_type.vtable));
});
