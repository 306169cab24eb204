//! The functions of a program, by its symbol table.

use object::{
    Object, ObjectSegment, ObjectSymbol, SymbolKind,
    read::{ReadCache, elf::ElfFile64},
};
use std::{fs::File, path::Path};

/// Offsets in the file of the functions that are called `name`, or of all, ascending. Little of the file is read.
pub(crate) fn functions(program: &Path, name: Option<&str>) -> Vec<u64> {
    let data = ReadCache::new(File::open(program).expect("a program that was just built"));
    let file: ElfFile64<'_, object::Endianness, _> = ElfFile64::parse(&data).expect("an ELF file");
    let offset = |address: u64| {
        file.segments().find_map(|segment| {
            let within = address.checked_sub(segment.address())?;
            (within < segment.file_range().1).then_some(segment.file_range().0 + within)
        })
    };
    let mut functions: Vec<_> = file
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
        .filter(|symbol| name.is_none() || symbol.name().ok() == name)
        .filter_map(|symbol| offset(symbol.address()))
        .collect();
    functions.sort_unstable();
    functions.dedup();
    functions
}
