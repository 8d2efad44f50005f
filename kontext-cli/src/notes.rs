//! Notes of a run for its user, from its events.

use kontext::Event;
use kontext_core::{printable, shortened};

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
        _ => None,
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
