//! Stages of a run, of loading and of training, as errors, plans and events name them.

use std::fmt;

/// A stage of a run, of loading or of training.
///
/// [`Display`](fmt::Display) gives the words of messages, a phrase that follows "while".
///
/// # Example
/// ```
/// use kontext_core::{ModelPart, Stage};
/// assert_eq!(Stage::Decode.to_string(), "decoding the image");
/// assert_eq!(Stage::DenoiseStep { step: 3 }.to_string(), "denoising step 3");
/// assert_eq!(Stage::DenoiseStep { step: 3 }.part(), Some(ModelPart::Transformer));
/// assert_eq!(Stage::default(), Stage::Compute);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Any computation: the stage of a libtorch error to which no caller has given another one.
    #[default]
    Compute,
    /// Loading a model.
    Load,
    /// Loading one part of a model.
    LoadPart {
        /// The part.
        part: ModelPart,
    },
    /// Encoding a run's prompts.
    Text,
    /// The pass of T5 over a prompt.
    TextT5,
    /// The pass of CLIP over a prompt.
    TextClip,
    /// Encoding a run's reference images.
    References,
    /// The pass of the autoencoder's encoder over an image.
    Encode,
    /// Drawing a run's noise.
    Noise,
    /// Preparing all that the transformer computes once a run.
    Prepare,
    /// A pass of the transformer.
    Forward,
    /// All denoising steps of a run.
    Denoise,
    /// One denoising step.
    DenoiseStep {
        /// Its number, from 1.
        step: usize,
    },
    /// Decoding a run's images: the pass of the autoencoder's decoder.
    Decode,
    /// A training step.
    Train {
        /// The trained part.
        part: ModelPart,
        /// Its number, from 1.
        step: u64,
    },
    /// Measuring the loss of held-out items.
    Validate,
    /// A stage of a downstream crate, as a gerund phrase: "embedding images". No stage of the kontext crates
    /// that a run, loading or training has.
    Other(&'static str),
}

/// A network of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelPart {
    /// The text encoder T5, for the words of a prompt.
    T5,
    /// The text encoder CLIP, for a prompt as a whole.
    Clip,
    /// The transformer.
    Transformer,
    /// The autoencoder, encoder and decoder.
    Autoencoder,
}

impl Stage {
    /// Returns the part of the model at work, or `None` for a stage of several parts or of none.
    #[must_use]
    pub fn part(self) -> Option<ModelPart> {
        match self {
            Self::LoadPart { part } | Self::Train { part, .. } => Some(part),
            Self::TextT5 => Some(ModelPart::T5),
            Self::TextClip => Some(ModelPart::Clip),
            Self::References | Self::Encode | Self::Decode => Some(ModelPart::Autoencoder),
            Self::Prepare | Self::Forward | Self::Denoise | Self::DenoiseStep { .. } => Some(ModelPart::Transformer),
            Self::Compute | Self::Load | Self::Text | Self::Noise | Self::Validate | Self::Other(_) => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compute => "computing",
            Self::Load => "loading the model",
            Self::LoadPart { part } => return write!(f, "loading {part}"),
            Self::Text => "encoding the prompt",
            Self::TextT5 => "encoding the prompt with T5",
            Self::TextClip => "encoding the prompt with CLIP",
            Self::References => "encoding the reference images",
            Self::Encode => "encoding an image",
            Self::Noise => "drawing the noise",
            Self::Prepare => "preparing the transformer's run",
            Self::Forward => "running the transformer",
            Self::Denoise => "denoising",
            Self::DenoiseStep { step } => return write!(f, "denoising step {step}"),
            Self::Decode => "decoding the image",
            Self::Train { part, step } => return write!(f, "training step {step} of {part}"),
            Self::Validate => "validating",
            Self::Other(words) => words,
        })
    }
}

impl fmt::Display for ModelPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::T5 => "T5",
            Self::Clip => "CLIP",
            Self::Transformer => "the transformer",
            Self::Autoencoder => "the autoencoder",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_with_a_part_or_a_number_names_it() {
        let part = ModelPart::T5;
        assert_eq!(Stage::LoadPart { part }.to_string(), "loading T5");
        let part = ModelPart::Autoencoder;
        let step = Stage::Train { part, step: 3 };
        assert_eq!(step.to_string(), "training step 3 of the autoencoder");
        assert_eq!(step.part(), Some(part));
    }

    #[test]
    fn only_a_stage_of_one_part_names_it() {
        assert_eq!(Stage::TextClip.part(), Some(ModelPart::Clip));
        assert_eq!(Stage::Text.part(), None);
        assert_eq!(Stage::Other("embedding images").part(), None);
    }
}
