//! Counts of what makes prose hard to read, and their limits.

use std::ops::AddAssign;

use regex_lite::Regex;

use super::text::Line;
use crate::failure::Failure;

/// Words that are correct English, but not the words of the field: readers who know machine learning and Rust look for
/// "next to", "after", "only", "is" or "says", and stumble over these. `(?i)` and word boundaries are added.
const IDIOMS: [&str; 12] = [
    "besides?",
    "behind",
    "alone",
    "stands?",
    "stood",
    "told",
    "tells?",
    "so many",
    "affair",
    "in place of",
    "anew",
    "brought",
];

/// Openings that make a question of a doc line; a noun phrase or a verb says the same sooner.
const OPENING: &str = r"^(What|Whether|How|Where|Who)\b";

/// Relative clauses; an adjective or a participle is often shorter.
const CLAUSE: &str = r"(?i)\bthat (is|are|has|have|it|they|the|was|were)\b";

/// The most openings in 1000 doc lines.
pub(super) const MOST_OPENINGS: f64 = 5.0;

/// The most idioms in 1000 words.
pub(super) const MOST_IDIOMS: f64 = 1.0;

/// The compiled patterns.
pub(super) struct Patterns {
    opening: Regex,
    clause: Regex,
    idiom: Regex,
}

impl Patterns {
    pub(super) fn new() -> Result<Self, Failure> {
        let compile = |pattern: &str| {
            Regex::new(pattern).map_err(|error| Failure::Pattern {
                pattern: pattern.to_owned(),
                said: error.to_string(),
            })
        };
        Ok(Self {
            opening: compile(OPENING)?,
            clause: compile(CLAUSE)?,
            idiom: compile(&format!(r"(?i)\b({})\b", IDIOMS.join("|")))?,
        })
    }

    pub(super) fn count(&self, line: &Line) -> Counts {
        Counts {
            doc_lines: usize::from(line.is_doc),
            words: line.text.split_whitespace().count(),
            openings: usize::from(line.is_doc && self.opening.is_match(&line.text)),
            clauses: self.clause.find_iter(&line.text).count(),
            idioms: self.idiom.find_iter(&line.text).count(),
        }
    }
}

/// Counts of some lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) doc_lines: usize,
    pub(super) words: usize,
    pub(super) openings: usize,
    pub(super) clauses: usize,
    pub(super) idioms: usize,
}

impl Counts {
    /// Openings in 1000 doc lines.
    pub(super) fn opening_rate(&self) -> f64 {
        per_thousand(self.openings, self.doc_lines)
    }

    /// Relative clauses in 1000 words.
    pub(super) fn clause_rate(&self) -> f64 {
        per_thousand(self.clauses, self.words)
    }

    /// Idioms in 1000 words.
    pub(super) fn idiom_rate(&self) -> f64 {
        per_thousand(self.idioms, self.words)
    }

    /// The number of places that count against a limit.
    pub(super) fn faults(&self) -> usize {
        self.openings + self.idioms
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.doc_lines += other.doc_lines;
        self.words += other.words;
        self.openings += other.openings;
        self.clauses += other.clauses;
        self.idioms += other.idioms;
    }
}

#[expect(clippy::cast_precision_loss, reason = "the counts are far below 2^52")]
fn per_thousand(count: usize, of: usize) -> f64 {
    1000.0 * count as f64 / of.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, is_doc: bool) -> Counts {
        let line = Line {
            number: 1,
            is_doc,
            text: text.to_owned(),
        };
        Patterns::new().expect("valid").count(&line)
    }

    #[test]
    fn openings_count_at_the_start_of_doc_lines() {
        for word in ["What", "Whether", "How", "Where", "Who"] {
            let text = format!("{word} it is");
            assert_eq!(count(&text, true).openings, 1, "{text}");
            assert_eq!(count(&text, false).openings, 0, "{text}");
            assert_eq!(count(&format!("Says {word}"), true).openings, 0);
            assert_eq!(count(&text.to_lowercase(), true).openings, 0);
            assert_eq!(count(&format!("{word}x"), true).openings, 0);
        }
    }

    #[test]
    fn each_idiom_counts_wherever_it_is() {
        for idiom in [
            "beside",
            "besides",
            "behind",
            "alone",
            "stand",
            "stands",
            "stood",
            "told",
            "tell",
            "tells",
            "so many",
            "affair",
            "in place of",
            "anew",
            "brought",
        ] {
            for text in [
                format!("a {idiom} b"),
                format!("{idiom}."),
                format!("({})", idiom.to_uppercase()),
            ] {
                assert_eq!(count(&text, false).idioms, 1, "{text}");
            }
            assert_eq!(count(&format!("x{idiom} {idiom}x {idiom}_"), true).idioms, 0, "{idiom}");
        }
        assert_eq!(count("standalone, told and told", true).idioms, 2);
    }

    #[test]
    fn clauses_and_words_are_counted() {
        let counts = count("That is a word that they that-is and that it", true);
        assert_eq!((counts.clauses, counts.words, counts.doc_lines), (3, 10, 1));
    }

    #[test]
    fn rates_are_in_a_thousand() {
        let mut sum = count("Where it stands", true);
        sum += count("one more line", true);
        assert_eq!(sum.faults(), 2);
        assert!((sum.opening_rate() - 500.0).abs() < 1e-9);
        assert!((sum.idiom_rate() - 1000.0 / 6.0).abs() < 1e-9);
        assert!(Counts::default().idiom_rate().abs() < 1e-9);
    }
}
