//! Notes of a run for its user, from its events.

use std::collections::BTreeSet;
use std::sync::Mutex;

use kontext::Event;
use kontext_core::{lock, printable, shortened};

use crate::progress::above;

/// Characters of a cut text that a note shows.
const SHOWN: usize = 80;

/// Returns the line to print for an event; `None` for progress.
#[must_use]
pub fn of(event: &Event<'_>) -> Option<String> {
    match event {
        Event::Warning { warning } => Some(format!("warning: {warning}")),
        Event::PromptTruncated { truncation } => Some(format!(
            "{} does not see the end of the prompt: “{}”",
            truncation.encoder,
            shown(&truncation.text)
        )),
        Event::UnknownWords { unknown } => Some(format!(
            "{} does not know this of the prompt: “{}”",
            unknown.encoder,
            shown(&unknown.texts.join("”, “"))
        )),
        Event::NoKernels { reason } => Some(format!("warning: steps take longer, without kernels: {reason}")),
        _ => None,
    }
}

/// Notes of many runs, each printed when it first comes.
#[derive(Debug, Default)]
pub struct Notes(Mutex<BTreeSet<String>>);

impl Notes {
    /// Prints the line of an event, above the bars, unless an earlier run had the same. The line begins with the
    /// name of the run, if it has one; a text that an encoder does not see is printed for each name.
    pub fn observe(&self, run: &str, event: &Event<'_>) {
        if let Some(line) = self.line(run, event) {
            above(line);
        }
    }

    fn line(&self, run: &str, event: &Event<'_>) -> Option<String> {
        let line = of(event)?;
        let named = if run.is_empty() {
            line.clone()
        } else {
            format!("{run}: {line}")
        };
        let seen = if matches!(event, Event::Warning { .. } | Event::NoKernels { .. }) {
            line
        } else {
            named.clone()
        };
        lock(&self.0).insert(seen).then_some(named)
    }
}

/// Returns a text of the prompt for a line: printable, and shortened.
fn shown(text: &str) -> String {
    shortened(&printable(text.trim()), SHOWN)
}

#[cfg(test)]
mod tests {
    use kontext::crates::kontext_text::Unknown;

    use super::*;

    #[test]
    fn a_text_of_the_prompt_is_one_short_line() {
        assert_eq!(shown(" é\n☃ "), "é\\n☃");
        assert_eq!(shown(&"é".repeat(81)).chars().count(), 80);
    }

    #[test]
    fn a_note_of_many_runs_is_printed_once() {
        let notes = Notes::default();
        let warning = kontext::Warning::CfgModeIgnored;
        let line = |run: &str| notes.line(run, &Event::Warning { warning: &warning });
        assert!(line("0000_00").is_some_and(|line| line.starts_with("0000_00: warning: cfg_mode")));
        assert_eq!(line("0000_01"), None);
        let unknown = Unknown {
            encoder: kontext::ModelPart::T5,
            texts: vec!["☃".to_owned()],
        };
        let line = |run: &str| notes.line(run, &Event::UnknownWords { unknown: &unknown });
        let words = "T5 does not know this of the prompt: “☃”";
        assert_eq!(line("").as_deref(), Some(words));
        assert_eq!(line(""), None);
        for run in ["0000_00", "0000_01"] {
            assert_eq!(line(run), Some(format!("{run}: {words}")));
        }
    }

    #[test]
    fn unknown_texts_are_quoted_one_by_one() {
        let texts = ["漢字", "☃"].map(str::to_owned).to_vec();
        let unknown = Unknown {
            encoder: kontext::ModelPart::T5,
            texts,
        };
        assert_eq!(
            of(&Event::UnknownWords { unknown: &unknown }).as_deref(),
            Some("T5 does not know this of the prompt: “漢字”, “☃”")
        );
    }
}
