//! The prompts of a dataset that an encoder does not see whole.

use std::collections::BTreeSet;
use std::fmt;

use kontext_core::{ModelPart, Result, printable, shortened};
use kontext_text::{TextEncoder, Unseen};

/// Characters of a prompt, or of the unseen part of one, that a message shows.
const SHOWN: usize = 80;

/// The part of a prompt that an encoder does not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnseenPart {
    /// The end, beyond the encoder's number of tokens.
    Truncated,
    /// Words that its vocabulary lacks.
    Unknown,
}

/// The prompts of a dataset of which an encoder does not see a part. It prints as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnseenPrompts {
    /// The encoder: [`ModelPart::T5`] or [`ModelPart::Clip`].
    pub encoder: ModelPart,
    /// The part.
    pub part: UnseenPart,
    /// Number of these prompts.
    pub prompts: usize,
    /// The first of them, in the order of the alphabet.
    pub first: String,
    /// The part of the first that is not seen.
    pub text: String,
}

impl fmt::Display for UnseenPrompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |text: &str| shortened(&printable(text.trim()), SHOWN);
        let problem = match self.part {
            UnseenPart::Truncated => "does not see the end",
            UnseenPart::Unknown => "does not know all words",
        };
        let (encoder, prompts) = (self.encoder, self.prompts);
        let (first, text) = (shown(&self.first), shown(&self.text));
        write!(
            f,
            "{encoder} {problem} of {prompts} prompt(s) of the data; the first is “{first}”, without “{text}”"
        )
    }
}

/// Looks for the parts of prompts that the encoders do not see.
pub(super) fn unseen(prompts: &BTreeSet<&str>, text: &TextEncoder) -> Result<Vec<UnseenPrompts>> {
    let mut found = Vec::<UnseenPrompts>::new();
    for prompt in prompts {
        let Unseen { truncated, unknown } = text.unseen(prompt)?;
        let truncated = truncated
            .into_iter()
            .map(|cut| (cut.encoder, UnseenPart::Truncated, cut.text));
        let unknown = unknown
            .into_iter()
            .map(|lack| (lack.encoder, UnseenPart::Unknown, lack.texts.join("”, “")));
        for (encoder, part, text) in truncated.chain(unknown) {
            match found.iter_mut().find(|f| (f.encoder, f.part) == (encoder, part)) {
                Some(known) => known.prompts += 1,
                None => found.push(UnseenPrompts {
                    encoder,
                    part,
                    prompts: 1,
                    first: (*prompt).to_owned(),
                    text,
                }),
            }
        }
    }
    Ok(found)
}
