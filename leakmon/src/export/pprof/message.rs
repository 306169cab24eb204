//! The messages of pprof's format, written by hand so that no protoc is needed.
//!
//! In: nothing, it is data. Out: protobuf by [`prost`]. Field numbers and types: `proto/profile.proto` of
//! github.com/google/pprof (package `perftools.profiles`); fields that leakmon has nothing for are left out.

use prost::Message;

/// A whole profile. Strings are indices into `string_table`, whose first entry is empty.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    /// What each value of a sample means.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// Samples.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// Images.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// Addresses.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// Functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// Strings.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// Length of the observation.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// Lines for a person, strings.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
    /// The sample type that is shown first, a string.
    #[prost(int64, tag = "14")]
    pub default_sample_type: i64,
}

/// Meaning and unit of a value, strings.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ValueType {
    /// Meaning.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// Unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// One stack with its values.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Sample {
    /// Ids of locations, innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One value for each sample type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// What else is known of it.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A string or a number by a name.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Label {
    /// Name, a string.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Value, a string.
    #[prost(int64, tag = "2")]
    pub str: i64,
    /// Value, where it is a number.
    #[prost(int64, tag = "3")]
    pub num: i64,
}

/// One image.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Mapping {
    /// Not 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// First address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// Address behind the last.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// Offset in the file of the first address.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// File name, a string.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// Build id, hexadecimal, a string.
    #[prost(int64, tag = "6")]
    pub build_id: i64,
    /// Whether its locations have functions.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// Whether they have file names.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// Whether they have lines.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// Whether inlined functions are shown.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// One address.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Location {
    /// Not 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its image, or 0.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// The address.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// Innermost inlined function first, the function that they were inlined into last.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Line {
    /// Its function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// Line from 1, or 0.
    #[prost(int64, tag = "2")]
    pub line: i64,
}

/// One function.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Function {
    /// Not 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name, a string.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// Name in the symbol table, a string.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// Source file, a string.
    #[prost(int64, tag = "4")]
    pub filename: i64,
}
