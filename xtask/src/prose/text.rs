//! The lines of a file that are prose: doc comments and other comments of Rust, Markdown, comments of Python and shell.
//!
//! Code in fences is none, and literals in backticks count as one word each.

use std::collections::HashSet;
use std::str::FromStr;

use proc_macro2::{TokenStream, TokenTree};

/// A line of prose.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) number: usize,
    /// A line of a doc comment or of Markdown.
    pub(super) is_doc: bool,
    /// The text without its markers.
    pub(super) text: String,
}

/// The languages whose prose is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Rust,
    Markdown,
    /// Python or shell: comments start with `#`.
    Script,
}

impl Language {
    /// Goes by the suffix of the name.
    pub(super) fn of(path: &str) -> Option<Self> {
        let (_, suffix) = path.rsplit_once('.')?;
        match suffix {
            "rs" => Some(Self::Rust),
            "md" => Some(Self::Markdown),
            "py" | "sh" => Some(Self::Script),
            _ => None,
        }
    }

    /// The prose of a file; lines without a word are left out.
    pub(super) fn lines(self, source: &str) -> Vec<Line> {
        let in_strings = match self {
            Self::Rust => lines_in_strings(source),
            Self::Markdown | Self::Script => HashSet::new(),
        };
        let mut is_fenced = false;
        let mut lines = Vec::new();
        for (number, line) in (1..).zip(source.lines()) {
            if in_strings.contains(&number) {
                continue;
            }
            let Some((is_doc, text)) = self.comment(line.trim()) else {
                continue;
            };
            if is_doc && text.starts_with("```") {
                is_fenced = !is_fenced;
                continue;
            }
            if is_doc && is_fenced {
                continue;
            }
            let text = without_markers(&without_literals(text)).to_owned();
            if !text.is_empty() {
                lines.push(Line { number, is_doc, text });
            }
        }
        lines
    }

    /// The comment that is the whole `line`, and if it is documentation.
    fn comment(self, line: &str) -> Option<(bool, &str)> {
        match self {
            Self::Rust => {
                let rest = line.strip_prefix("//")?;
                let text = rest.strip_prefix(['/', '!']);
                Some((text.is_some(), text.unwrap_or(rest).trim()))
            }
            Self::Markdown => Some((true, line)),
            Self::Script => {
                let is_comment = line.starts_with('#') && !line.starts_with("#!");
                is_comment.then(|| (false, line.trim_start_matches(['#', ' '])))
            }
        }
    }
}

/// The lines of Rust that start within a string.
fn lines_in_strings(source: &str) -> HashSet<usize> {
    let mut lines = HashSet::new();
    // Source that is not Rust has no strings.
    if let Ok(tokens) = TokenStream::from_str(source) {
        collect_strings(tokens, &mut lines);
    }
    lines
}

fn collect_strings(tokens: TokenStream, lines: &mut HashSet<usize>) {
    for token in tokens {
        match token {
            TokenTree::Group(group) => collect_strings(group.stream(), lines),
            TokenTree::Literal(literal) => {
                let span = literal.span();
                lines.extend(span.start().line + 1..=span.end().line);
            }
            TokenTree::Ident(_) | TokenTree::Punct(_) => {}
        }
    }
}

/// Puts an `x` for each literal in backticks.
fn without_literals(text: &str) -> String {
    let mut parts = text.split('`');
    let mut result = parts.next().unwrap_or_default().to_owned();
    while let Some(literal) = parts.next() {
        match parts.next() {
            Some(after) => {
                result.push('x');
                result.push_str(after);
            }
            // A backtick without a second one.
            None => {
                result.push('`');
                result.push_str(literal);
            }
        }
    }
    result
}

/// Removes the markers of headings, lists, quotes and tables.
fn without_markers(text: &str) -> &str {
    text.trim_start_matches(|char: char| "-*>|#.".contains(char) || char.is_whitespace() || char.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(language: Language, source: &str) -> Vec<(usize, bool, String)> {
        let lines = language.lines(source).into_iter();
        lines.map(|line| (line.number, line.is_doc, line.text)).collect()
    }

    #[test]
    fn documentation_and_comments_of_rust_are_told_apart() {
        let source = "//! Crate.\n\n/// Item `a b`.\nfn f() {\n    // Remark.\n    g(); // After code.\n    ////x\n}\n";
        assert_eq!(
            read(Language::Rust, source),
            [
                (1, true, "Crate.".to_owned()),
                (3, true, "Item x.".to_owned()),
                (5, false, "Remark.".to_owned()),
                (7, true, "/x".to_owned()),
            ]
        );
    }

    #[test]
    fn code_in_fences_is_no_prose() {
        let rust = "/// ```rust\n/// let told = 1;\n/// ```\n/// Text.\n";
        assert_eq!(read(Language::Rust, rust), [(4, true, "Text.".to_owned())]);
        let markdown = "# Title\n```sh\ntold\n```\n  - 1. Text\n";
        assert_eq!(
            read(Language::Markdown, markdown),
            [(1, true, "Title".to_owned()), (5, true, "Text".to_owned())]
        );
    }

    #[test]
    fn strings_are_no_comments() {
        let source = "let a = \"// told\";\nlet b = \"\n// told\n/// told\";\nlet c = r#\"\n// told\"#;\n// Text.\n";
        assert_eq!(read(Language::Rust, source), [(7, false, "Text.".to_owned())]);
    }

    #[test]
    fn scripts_have_comments_after_the_first_line() {
        let source = "#!/bin/sh\n# Text.\necho told # told\n  ## More\n#\n";
        assert_eq!(
            read(Language::Script, source),
            [(2, false, "Text.".to_owned()), (4, false, "More".to_owned())]
        );
    }

    #[test]
    fn literals_need_both_backticks() {
        assert_eq!(without_literals("a `b c` d `e`"), "a x d x");
        assert_eq!(without_literals("a `b` c ` d"), "a x c ` d");
        assert_eq!(without_literals("``` a"), "x` a");
    }

    #[test]
    fn the_suffix_tells_the_language() {
        assert_eq!(Language::of("src/lib.rs"), Some(Language::Rust));
        assert_eq!(Language::of("README.md"), Some(Language::Markdown));
        assert_eq!(Language::of("a/run.sh"), Some(Language::Script));
        assert_eq!(Language::of("a.b/LICENSE"), None);
    }
}
