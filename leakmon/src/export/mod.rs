//! One file an output format; `http` only routes.
//!
//! In: a [`report::Report`] and, for metrics, [`crate::self_metrics::SelfMetrics`]. Out: bytes for a terminal, a file
//! or an HTTP client. Everything but `http` is a pure function of these: nothing here symbolises, reads a process or
//! touches BPF.
//!
//! | file | makes |
//! | --- | --- |
//! | `table` | text for a person |
//! | `json` | the JSON contract |
//! | `folded` | folded stacks for flame graphs |
//! | `svg` | a flame graph |
//! | `pprof` | a profile for `go tool pprof` and its like |
//! | `trace` | births and ends over time, for Perfetto |
//! | `comparison` | two reports compared, as a table, JSON or a flame graph |
//! | `plan` | a probe plan as text |
//! | `census` | a census as text and JSON |
//! | `series`, `metrics` | the bounded choice of time series, and Prometheus text |
//! | `snapshot`, `http` | what a request may read, and the routes |
//! | `top` | the live view on a terminal |
//! | `pyroscope` | profiles pushed to a server |
//! | `pods` | names of pods and containers, asked of Kubernetes |
//! | `page` | the page at `/`: plain files |
//! | `escape`, `shorten`, `age`, `filter` | what formats share: harmless and fitting names, durations, `?pid=`, `?kind=` |
//!
//! A new output is one file and one line in the table below.

pub mod age;
pub mod census;
pub mod comparison;
pub mod escape;
pub mod filter;
pub mod folded;
pub mod http;
pub mod json;
pub mod metrics;
pub mod page;
pub mod plan;
pub mod pods;
pub mod pprof;
pub mod pyroscope;
pub mod report;
pub mod series;
pub(crate) mod shorten;
pub mod snapshot;
pub mod svg;
pub mod table;
pub mod top;
pub mod trace;

use report::Report;

/// How a report is shown; the formats for programs ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenderOptions {
    /// Columns of the terminal; `None` where the output goes elsewhere, then nothing is shortened.
    pub width: Option<u16>,
    /// Whether escape sequences for colour may be written.
    pub colour: bool,
}

/// Declares [`Format`] and its table from one line a format.
macro_rules! formats {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $content_type:expr, $extension:literal, $render:path;)*) => {
        /// A report format, as `--format` names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Format { $($(#[$doc])* $variant,)* }

        impl Format {
            /// All formats, in the order in which help texts list them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Its name on the command line.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Its media type.
            #[must_use]
            pub const fn content_type(self) -> &'static str {
                match self { $(Self::$variant => $content_type,)* }
            }

            /// How the name of a file that holds it ends, without the dot.
            #[must_use]
            pub const fn extension(self) -> &'static str {
                match self { $(Self::$variant => $extension,)* }
            }

            fn renderer(self) -> fn(&Report, &RenderOptions) -> Vec<u8> {
                match self { $(Self::$variant => $render,)* }
            }
        }
    };
}

// Variant = name, media type, file extension, function.
formats! {
    /// Text for a person.
    Table = "table", "text/plain; charset=utf-8", "txt", table::render;
    /// The JSON contract.
    Json = "json", "application/json", "json", json::render;
    /// Folded stacks.
    Folded = "folded", "text/plain; charset=utf-8", "folded", folded::render;
    /// A gzipped profile.
    Pprof = "pprof", "application/octet-stream", "pb.gz", pprof::render;
    /// A flame graph.
    Svg = "svg", svg::CONTENT_TYPE, "svg", svg::render;
}

impl Format {
    /// The format of this name, `None` if there is none.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.name() == name)
    }
}

/// The report in a format. Text is UTF-8 and ends with a line end, or is empty.
#[must_use]
pub fn render(format: Format, report: &Report, options: &RenderOptions) -> Vec<u8> {
    format.renderer()(report, options)
}

#[cfg(test)]
mod samples;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_found_by_their_names() {
        for &format in Format::ALL {
            assert_eq!(Format::named(format.name()), Some(format));
            assert!(!render(format, &samples::busy(), &RenderOptions::default()).is_empty());
        }
        for unknown in ["", "JSON", "yaml"] {
            assert_eq!(Format::named(unknown), None);
        }
    }
}
