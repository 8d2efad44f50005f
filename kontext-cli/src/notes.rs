//! Notes of a run for its user, from its events.

use kontext::Event;

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
            shortened(&truncation.text)
        )),
        Event::UnknownWords { unknown } => Some(format!(
            "{} does not know this of the prompt: “{}”",
            unknown.encoder,
            shortened(&unknown.texts.join("”, “"))
        )),
        _ => None,
    }
}

/// Returns the first 80 characters of a text.
fn shortened(text: &str) -> String {
    let text = text.trim();
    if text.chars().count() <= SHOWN {
        text.to_owned()
    } else {
        text.chars().take(SHOWN).chain("…".chars()).collect()
    }
}

#[cfg(test)]
mod tests {
    use kontext::crates::kontext_text::Unknown;

    use super::*;

    #[test]
    fn a_long_text_is_shortened_by_characters() {
        assert_eq!(shortened(" é ".trim_end()), "é");
        assert_eq!(shortened(&"é".repeat(81)), "é".repeat(80) + "…");
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
