//! The page at `/`: plain files, served as they are.
//!
//! In: nothing; the page asks for the JSON report itself. Out: HTML, CSS, JavaScript and an icon, with a policy that
//! lets it load nothing from elsewhere and execute nothing but these files. It puts names into the document as text only.

/// One file of the page.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Path that it is served under.
    pub path: &'static str,
    /// Media type.
    pub content_type: &'static str,
    /// The whole file.
    pub text: &'static str,
}

/// `Content-Security-Policy` of the page: its own files and its own server, nothing inline, no frame around it.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The policy of a flame graph that is opened by itself: it may execute the script that was drawn into it, in an origin of
/// its own, and may ask nobody for anything.
pub const FLAME_GRAPH_POLICY: &str =
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A script of the page's folder.
macro_rules! script {
    ($name:literal) => {
        File {
            path: concat!("/page/", $name),
            content_type: SCRIPT,
            text: include_str!(concat!("page/", $name)),
        }
    };
}

/// All files of the page.
pub const FILES: [File; 10] = [
    File {
        path: "/",
        content_type: "text/html; charset=utf-8",
        text: include_str!("page/index.html"),
    },
    File {
        path: "/page/style.css",
        content_type: "text/css; charset=utf-8",
        text: include_str!("page/style.css"),
    },
    File {
        path: "/page/icon.svg",
        content_type: super::svg::CONTENT_TYPE,
        text: include_str!("page/icon.svg"),
    },
    script!("main.js"),
    script!("detail.js"),
    script!("flame.js"),
    script!("history.js"),
    script!("sites.js"),
    script!("text.js"),
    script!("tree.js"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_is_named_is_there_and_nothing_comes_from_elsewhere() {
        for file in FILES {
            let text = file.text;
            for named in ["src=\"", "href=\"page", "from \"./"] {
                for (at, _) in text.match_indices(named) {
                    let value = text[at..].split('"').nth(1).unwrap_or_default();
                    let path = format!("/page/{}", value.trim_start_matches("./").trim_start_matches("page/"));
                    assert!(
                        FILES.iter().any(|file| file.path == path),
                        "{} names {value}",
                        file.path
                    );
                }
            }
            for way_out in [
                "http://",
                "https://",
                "//cdn",
                "@import",
                "innerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
            ] {
                let uses = text.matches(way_out).count()
                    - text.matches("http://www.w3.org/2000/svg").count() * usize::from(way_out == "http://");
                assert_eq!(uses, 0, "{} has {way_out}", file.path);
            }
        }
    }

    #[test]
    fn the_page_has_nothing_that_its_policy_forbids() {
        for file in FILES.iter().filter(|file| file.content_type.starts_with("text/html")) {
            for forbidden in ["<style", "style=\"", "onclick", "onload", "javascript:"] {
                assert!(!file.text.contains(forbidden), "{forbidden}");
            }
        }
    }
}
