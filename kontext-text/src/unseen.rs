//! The parts of a prompt that an encoder did not see.

use kontext_core::ModelPart;

use crate::Encoded;

/// The part of a prompt that an encoder did not see because it was truncated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncation {
    /// The encoder: [`ModelPart::T5`] or [`ModelPart::Clip`].
    pub encoder: ModelPart,
    /// The cut text, verbatim.
    pub text: String,
}

/// The parts of a prompt for which an encoder's vocabulary has no token: it saw its `<unk>` there.
///
/// T5's vocabulary lacks most scripts and emoji. CLIP's published one spells any text in bytes and knows
/// all of it; a smaller one may lack some.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The encoder: [`ModelPart::T5`] or [`ModelPart::Clip`].
    pub encoder: ModelPart,
    /// The texts verbatim, each once, in the order of the prompt. A text is the longest run of unknown
    /// characters, and may be a part of a word.
    pub texts: Vec<String>,
}

/// The parts of a prompt that encoders did not see, T5's first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unseen {
    /// Cut texts, at most one of an encoder.
    pub truncated: Vec<Truncation>,
    /// Unknown texts, at most one entry of an encoder. Those within a cut text are not among them.
    pub unknown: Vec<Unknown>,
}

impl Unseen {
    /// Returns `true` if the encoders saw the whole prompt.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.truncated.is_empty() && self.unknown.is_empty()
    }

    /// Collects the unseen parts of a prompt's tokens.
    pub(crate) fn of(encoder: ModelPart, tokens: Encoded) -> Self {
        let truncation = tokens.cut.map(|text| Truncation { encoder, text });
        let unknown = (!tokens.unknown.is_empty()).then_some(Unknown {
            encoder,
            texts: tokens.unknown,
        });
        Self {
            truncated: truncation.into_iter().collect(),
            unknown: unknown.into_iter().collect(),
        }
    }

    /// Appends those of another encoder.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.truncated.extend(other.truncated);
        self.unknown.extend(other.unknown);
        self
    }
}
