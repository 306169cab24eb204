//! Rust text without its comments and literals, so that a check sees words only where they are code.
//!
//! In: Rust source. Out: text of the same lines, with comments and the insides of string and character literals blanked.
//! It is no parser: it knows where comments and literals begin and end, and nothing else.

/// Blanks comments and literals; line breaks stay.
pub(super) fn without_comments_and_literals(text: &str) -> String {
    let mut scan = Scan {
        rest: text.chars().collect(),
        at: 0,
        out: String::with_capacity(text.len()),
    };
    while let Some(now) = scan.peek(0) {
        let word_before = scan
            .out
            .chars()
            .last()
            .is_some_and(|last| last.is_alphanumeric() || last == '_');
        match (now, scan.peek(1)) {
            ('/', Some('/')) => scan.blank_while(|ch| ch != '\n'),
            ('/', Some('*')) => scan.block_comment(),
            ('"', _) => scan.string(),
            ('r' | 'b' | 'c', _) if !word_before && scan.literal_prefix() => {}
            ('\'', _) => scan.character(),
            _ => scan.keep(),
        }
    }
    scan.out
}

struct Scan {
    rest: Vec<char>,
    at: usize,
    out: String,
}

impl Scan {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.rest.get(self.at + ahead).copied()
    }

    fn keep(&mut self) {
        if let Some(now) = self.peek(0) {
            self.out.push(now);
            self.at += 1;
        }
    }

    fn blank(&mut self) {
        if let Some(now) = self.peek(0) {
            self.out.push(if now == '\n' { '\n' } else { ' ' });
            self.at += 1;
        }
    }

    fn blank_while(&mut self, wanted: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.blank();
        }
    }

    /// Block comments nest.
    fn block_comment(&mut self) {
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => depth += 1,
                (Some('*'), Some('/')) => depth -= 1,
                (None, _) => return,
                _ => {
                    self.blank();
                    continue;
                }
            }
            self.blank();
            self.blank();
            if depth == 0 {
                return;
            }
        }
    }

    fn string(&mut self) {
        self.keep();
        while let Some(now) = self.peek(0) {
            match now {
                '"' => return self.keep(),
                '\\' => {
                    self.blank();
                    self.blank();
                }
                _ => self.blank(),
            }
        }
    }

    /// `r"…"`, `r#"…"#`, `b"…"`, `br#"…"#`, `c"…"`; false, and nothing eaten, where it is a mere word.
    fn literal_prefix(&mut self) -> bool {
        let mut letters = 0;
        let mut raw = false;
        while let Some(letter @ ('r' | 'b' | 'c')) = self.peek(letters) {
            raw |= letter == 'r';
            letters += 1;
        }
        let hashes = if raw {
            (0..).take_while(|hash| self.peek(letters + hash) == Some('#')).count()
        } else {
            0
        };
        if letters > 2 || self.peek(letters + hashes) != Some('"') {
            return false;
        }
        for _ in 0..letters + hashes {
            self.keep();
        }
        if raw {
            self.raw_string(hashes);
        } else {
            self.string();
        }
        true
    }

    fn raw_string(&mut self, hashes: usize) {
        self.keep();
        while let Some(now) = self.peek(0) {
            let closes = now == '"' && (1..=hashes).all(|hash| self.peek(hash) == Some('#'));
            if closes {
                return (0..=hashes).for_each(|_| self.keep());
            }
            self.blank();
        }
    }

    /// A character literal, or the quote of a lifetime.
    fn character(&mut self) {
        let literal = self.peek(1) == Some('\\') || self.peek(2) == Some('\'');
        self.keep();
        if !literal {
            return;
        }
        if self.peek(0) == Some('\\') {
            self.blank();
            self.blank();
        }
        self.blank_while(|ch| ch != '\'' && ch != '\n');
        self.keep();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_left() {
        for (text, code) in [
            ("a // b\nc", "a     \nc"),
            ("a /* b /* c */ d */ e", "a                   e"),
            ("f(\"x \\\" y\") g", "f(\"      \") g"),
            ("r#\"a \" b\"# c", "r#\"     \"# c"),
            ("br\"ab\" c", "br\"  \" c"),
            ("b\"ab\" for car", "b\"  \" for car"),
            ("'a' + '\\'' + '\\u{1F}'", "' ' + '  ' + '      '"),
            ("fn f<'a>(x: &'a str) {}", "fn f<'a>(x: &'a str) {}"),
            ("\"never closed", "\"            "),
            ("/* never closed", "               "),
            ("let r = bar; r.x()", "let r = bar; r.x()"),
        ] {
            assert_eq!(without_comments_and_literals(text), code, "{text}");
        }
    }

    #[test]
    fn lines_stay() {
        let text = include_str!("code.rs");
        let code = without_comments_and_literals(text);
        assert_eq!(code.lines().count(), text.lines().count());
        assert_eq!(code.chars().count(), text.chars().count());
    }
}
