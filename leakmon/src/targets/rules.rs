//! Which processes are wanted: include and exclude rules.
//!
//! In: rules from the configuration and the command line, and what is known of a process. Out: yes or no. Pure: [`super::identity`]
//! does the looking.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Rules that one configuration may have.
pub const RULES_MAX: usize = 256;

/// Characters of a pattern: a path and some.
const PATTERN_CHARS_MAX: usize = 4096;

/// What a rule asks of a process. All that is given must hold; in patterns `*` stands for any characters, `/` included, and `?`
/// for one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Pattern of the executable's path, as the process sees it.
    pub exe: Option<String>,
    /// Pattern of the command line, its arguments joined by one space.
    pub command: Option<String>,
    /// Pattern of the cgroup's path.
    pub cgroup: Option<String>,
    /// Name or number of the user whose rights the process has (its effective user).
    pub user: Option<String>,
}

/// Why a rule can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It asks nothing, and so would match everything.
    #[error("a rule needs at least one of exe, command, cgroup and user")]
    Empty,
    /// A part is not `KEY=PATTERN`.
    #[error("`{0}` is no KEY=PATTERN with one of the keys exe, command, cgroup and user")]
    Form(String),
    /// A key is there twice.
    #[error("`{0}` is given twice in one rule: write two rules")]
    Twice(&'static str),
    /// A pattern is empty or too long.
    #[error("the pattern of `{0}` must have between 1 and {PATTERN_CHARS_MAX} characters")]
    Pattern(&'static str),
    /// There is no such user here.
    #[error("there is no user `{0}` on this host: give the number, or a name that /etc/passwd has")]
    User(String),
}

impl Rule {
    const KEYS: [&str; 4] = ["exe", "command", "cgroup", "user"];

    fn fields(&self) -> [&Option<String>; 4] {
        [&self.exe, &self.command, &self.cgroup, &self.user]
    }

    /// Whether the rule asks something, within the bounds.
    ///
    /// # Errors
    /// [`RuleError`], but for users, which only this host knows.
    pub fn check(&self) -> Result<(), RuleError> {
        if self.fields().into_iter().all(Option::is_none) {
            return Err(RuleError::Empty);
        }
        for (key, pattern) in Self::KEYS.into_iter().zip(self.fields()) {
            let chars = pattern.as_ref().map_or(1, |pattern| pattern.chars().count());
            if !(1..=PATTERN_CHARS_MAX).contains(&chars) {
                return Err(RuleError::Pattern(key));
            }
        }
        Ok(())
    }
}

/// `KEY=PATTERN[,KEY=PATTERN…]`, as the options take it. A comma that is followed by no known key and `=` belongs to the pattern.
impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut parts: Vec<(&'static str, String)> = Vec::new();
        for piece in text.split(',') {
            let known = Self::KEYS
                .into_iter()
                .find_map(|key| Some((key, piece.strip_prefix(key)?.strip_prefix('=')?)));
            if let Some((key, pattern)) = known {
                if parts.iter().any(|(known, _)| *known == key) {
                    return Err(RuleError::Twice(key));
                }
                parts.push((key, pattern.to_owned()));
            } else {
                let Some((_, pattern)) = parts.last_mut() else {
                    return Err(RuleError::Form(text.chars().take(256).collect()));
                };
                pattern.push(',');
                pattern.push_str(piece);
            }
        }
        let mut rule = Self::default();
        for (key, pattern) in parts {
            let field = match key {
                "exe" => &mut rule.exe,
                "command" => &mut rule.command,
                "cgroup" => &mut rule.cgroup,
                _ => &mut rule.user,
            };
            *field = Some(pattern);
        }
        rule.check()?;
        Ok(rule)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (key, pattern) in Self::KEYS.into_iter().zip(self.fields()) {
            if let Some(pattern) = pattern {
                write!(formatter, "{comma}{key}={pattern}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

/// What the rules are asked about. Text from the target: it is compared, never printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject<'a> {
    /// Path of the executable.
    pub exe: &'a str,
    /// Command line, joined by spaces.
    pub command: &'a str,
    /// Path of the cgroup.
    pub cgroup: &'a str,
    /// Effective user.
    pub uid: u32,
}

/// All rules, with users as numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    include: Vec<Compiled>,
    exclude: Vec<Compiled>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Compiled {
    rule: Rule,
    uid: Option<u32>,
}

impl Rules {
    /// Compiles rules; `user` gives the number of a name.
    ///
    /// # Errors
    /// [`RuleError`] of the first rule that can't be used.
    pub fn new(include: &[Rule], exclude: &[Rule], user: impl Fn(&str) -> Option<u32>) -> Result<Self, RuleError> {
        let compile = |rule: &Rule| {
            rule.check()?;
            let number = |name: &String| {
                let uid = name.parse().ok().or_else(|| user(name));
                uid.ok_or_else(|| RuleError::User(name.chars().take(256).collect()))
            };
            let uid = rule.user.as_ref().map(number).transpose()?;
            Ok(Compiled {
                rule: rule.clone(),
                uid,
            })
        };
        Ok(Self {
            include: include.iter().map(compile).collect::<Result<_, _>>()?,
            exclude: exclude.iter().map(compile).collect::<Result<_, _>>()?,
        })
    }

    /// Whether every process is wanted, so that nothing need be known of it.
    #[must_use]
    pub fn want_all(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// Whether a process is wanted: where there are include rules one of them matches, and no exclude rule does.
    #[must_use]
    pub fn want(&self, subject: &Subject<'_>) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|rule| rule.matches(subject));
        included && self.want_named(subject)
    }

    /// Whether a process is wanted whose executable was asked for by its path: include rules need not match.
    #[must_use]
    pub fn want_named(&self, subject: &Subject<'_>) -> bool {
        !self.exclude.iter().any(|rule| rule.matches(subject))
    }
}

impl Compiled {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        let holds =
            |pattern: &Option<String>, text: &str| pattern.as_ref().is_none_or(|pattern| matches(pattern, text));
        holds(&self.rule.exe, subject.exe)
            && holds(&self.rule.command, subject.command)
            && holds(&self.rule.cgroup, subject.cgroup)
            && self.uid.is_none_or(|uid| uid == subject.uid)
    }
}

/// Whether the whole text matches the pattern. Takes at most pattern × text steps: only the last `*` is ever tried again.
fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    // What follows the last `*`, and the text after what that `*` has taken so far: where a comparison fails, it takes one more.
    let mut again = None;
    loop {
        let here = text.clone();
        match (pattern.next(), text.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                text = here;
                again = Some((pattern.clone(), text.clone()));
            }
            (Some('?'), Some(_)) => {}
            (Some(wanted), Some(found)) if wanted == found => {}
            _ => {
                let Some((after_star, rest)) = &mut again else {
                    return false;
                };
                if rest.next().is_none() {
                    return false;
                }
                pattern = after_star.clone();
                text = rest.clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const APP: Subject<'_> = Subject {
        exe: "/opt/app/bin/app",
        command: "app --port 80",
        cgroup: "/system.slice/app.service",
        uid: 33,
    };

    fn rules(include: &[&str], exclude: &[&str]) -> Rules {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<Rule>>();
        let www = |name: &str| (name == "www-data").then_some(33);
        Rules::new(&parse(include), &parse(exclude), www).unwrap()
    }

    #[test]
    fn a_process_is_wanted_where_an_include_and_no_exclude_matches() {
        for (include, exclude, wanted) in [
            (&[][..], &[][..], true),
            (&["exe=/opt/*"], &[], true),
            (&["exe=/opt"], &[], false),
            (&["exe=/usr/*", "user=www-data"], &[], true),
            (&["exe=/opt/*,user=0"], &[], false),
            (
                &["exe=/opt/*,user=33,command=*--port ??,cgroup=*/app.service"],
                &[],
                true,
            ),
            (&["command=app"], &[], false),
            (&[], &["cgroup=/system.slice/*"], false),
            (&[], &["user=1"], true),
            (&["exe=*/app"], &["command=*80"], false),
        ] {
            assert_eq!(rules(include, exclude).want(&APP), wanted, "{include:?} {exclude:?}");
        }
        assert!(rules(&["exe=/usr/*"], &["user=0"]).want_named(&APP));
        assert!(!rules(&[], &["user=33"]).want_named(&APP));
        assert!(rules(&[], &[]).want_all());
        assert!(!rules(&[], &["user=1"]).want_all());
    }

    #[test]
    fn a_rule_is_read_as_it_is_written() {
        for text in [
            "exe=/opt/*",
            "exe=/a,b/*,user=www-data",
            "command=a=b, c",
            "exe=*,command=*,cgroup=*,user=0",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
        for (text, error) in [
            ("", RuleError::Form(String::new())),
            ("path=/x", RuleError::Form("path=/x".into())),
            ("exe=", RuleError::Pattern("exe")),
            ("exe=/a,exe=/b", RuleError::Twice("exe")),
        ] {
            assert_eq!(text.parse::<Rule>(), Err(error));
        }
        let long = |chars: usize| format!("exe={}", "x".repeat(chars)).parse::<Rule>();
        assert!(long(PATTERN_CHARS_MAX).is_ok());
        assert_eq!(long(PATTERN_CHARS_MAX + 1), Err(RuleError::Pattern("exe")));
        assert_eq!(Rule::default().check(), Err(RuleError::Empty));
    }

    #[test]
    fn a_user_that_is_not_there_is_named() {
        let rule: Rule = "user=nobody-here".parse().unwrap();
        let error = Rules::new(&[rule], &[], |_| None).unwrap_err();
        assert!(error.to_string().contains("`nobody-here`"), "{error}");
    }

    #[test]
    fn many_stars_on_a_long_text_take_no_time() {
        assert!(!matches(&"*a".repeat(2_000), &"a".repeat(1_999)));
        assert!(matches(&"*a".repeat(1_999), &"a".repeat(1_999)));
    }

    /// The definition, word by word.
    fn model(pattern: &[char], text: &[char]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            (['*', rest @ ..], _) => (0..=text.len()).any(|taken| model(rest, &text[taken..])),
            (['?', rest @ ..], [_, after @ ..]) => model(rest, after),
            ([wanted, rest @ ..], [found, after @ ..]) => wanted == found && model(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_follows_its_definition(pattern in "[ab*?/]{0,8}", text in "[ab/é]{0,10}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(matches(&pattern, &text), model(&chars(&pattern), &chars(&text)));
        }
    }
}
