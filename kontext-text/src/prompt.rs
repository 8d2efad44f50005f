//! Prompt encoding with both encoders.

use kontext_core::{Conditioning, Error, Kind, ModelPart, Result, Stage, Tensor, check};

use crate::clip::{ClipConfig, HIGHEST_ID};
use crate::{ClipEncoder, Encoded, T5Encoder, Tokenizer, Unseen, WeightedText, weighted_texts};

/// A prompt: the text for each encoder. It is made from one text for both, or has two, as `prompt` and
/// `prompt_2` of diffusers and the two fields of ComfyUI's `CLIPTextEncodeFlux`.
///
/// # Example
/// ```
/// use kontext_text::Prompt;
/// assert_eq!(Prompt::from("a cup"), Prompt { clip: "a cup", t5: "a cup" });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt<'a> {
    /// The text for CLIP, whose pooled vector modulates the transformer's blocks: diffusers' `prompt`.
    pub clip: &'a str,
    /// The text for T5, whose states are the transformer's text tokens: diffusers' `prompt_2`.
    pub t5: &'a str,
}

/// The same text for both encoders.
impl<'a, T: AsRef<str> + ?Sized> From<&'a T> for Prompt<'a> {
    fn from(text: &'a T) -> Self {
        let text = text.as_ref();
        Self { clip: text, t5: text }
    }
}

/// Both text encoders with their tokenizers: prompts to the transformer's conditioning.
///
/// Source: huggingface/diffusers 0.38 `pipelines/flux/pipeline_flux_kontext.py` `encode_prompt`.
///
/// # Example
/// ```no_run
/// use kontext_core::{Device, Kind};
/// use kontext_text::{ClipEncoder, Prompt, T5Encoder, TextEncoder, Tokenizer};
///
/// let clip = ClipEncoder::open("kontext/text_encoder", Kind::Float, Device::Cpu)?;
/// let t5 = T5Encoder::open("kontext/text_encoder_2", Kind::Float, Device::Cpu)?;
/// let text = TextEncoder::new(clip, Tokenizer::open("kontext/tokenizer")?, t5, Tokenizer::open("kontext/tokenizer_2")?)?;
/// let (conditioning, unseen) = text.encode("make it winter")?;
/// assert_eq!(conditioning.prompt_embeds.size(), [1, 512, 4096]);
/// assert_eq!(conditioning.pooled.size(), [1, 768]);
/// assert!(unseen.is_empty());
/// let (two, _) = text.encode(Prompt { clip: "make it winter", t5: "snow on the roofs, bare trees" })?;
/// assert_eq!(two.pooled, conditioning.pooled);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct TextEncoder {
    clip: ClipEncoder,
    clip_tokenizer: Tokenizer,
    t5: T5Encoder,
    t5_tokenizer: Tokenizer,
    max_sequence_length: usize,
}

impl TextEncoder {
    /// Default number of T5 tokens of a prompt, as in the training of FLUX.1-dev and Kontext; see
    /// [`TextEncoder::max_sequence_length`].
    pub const SEQUENCE_LENGTH: usize = 512;

    /// Most T5 tokens of a prompt: 65,536, as [`Tokenizer::MOST_TOKENS`].
    pub const MOST_TOKENS: usize = Tokenizer::MOST_TOKENS;

    /// Combines the two encoders and their tokenizers.
    ///
    /// With a [`ClipConfig::eos_token_id`] of 2, as of FLUX.1, the pooled vector of a prompt with a token that was
    /// added above the end token, as by textual inversion, is the state at that token, as in transformers and
    /// diffusers. Write the end token's id (49407) into the configuration to have that at the end token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if a tokenizer can give ids outside its encoder's vocabulary, or does not begin and end
    /// prompts as the encoder expects: it is another encoder's.
    pub fn new(clip: ClipEncoder, clip_tokenizer: Tokenizer, t5: T5Encoder, t5_tokenizer: Tokenizer) -> Result<Self> {
        fits(ModelPart::Clip, &clip_tokenizer, clip.config().vocab_size)?;
        fits(ModelPart::T5, &t5_tokenizer, t5.config().vocab_size)?;
        ends_for_clip(&clip_tokenizer, clip.config())?;
        ends_for_t5(&t5_tokenizer)?;
        Ok(Self {
            clip,
            clip_tokenizer,
            t5,
            t5_tokenizer,
            max_sequence_length: Self::SEQUENCE_LENGTH,
        })
    }

    /// Sets the number of T5 tokens of every prompt, padding included. Default:
    /// [`TextEncoder::SEQUENCE_LENGTH`]; FLUX.1-schnell was trained with 256. Above [`TextEncoder::MOST_TOKENS`] no
    /// prompt can be encoded.
    #[must_use]
    pub fn max_sequence_length(self, tokens: usize) -> Self {
        Self {
            max_sequence_length: tokens,
            ..self
        }
    }

    /// Returns the number of T5 tokens of every prompt.
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.max_sequence_length
    }

    /// Encodes a prompt with both encoders and returns the text that each of them did not see: the end that
    /// it cut off (T5 after [`TextEncoder::max_sequence_length`] tokens, CLIP after 77), and what its
    /// vocabulary lacks.
    ///
    /// # Shapes
    /// `prompt_embeds` [1, T, D] and `pooled` [1, P], each with the dtype and on the device of its encoder.
    ///
    /// # Errors
    /// Those of [`prompt_embeds`] and [`pooled`].
    pub fn encode<'a>(&self, prompt: impl Into<Prompt<'a>>) -> Result<(Conditioning, Unseen)> {
        self.encode_in(prompt, self.t5.compute())
    }

    /// Encodes as [`TextEncoder::encode`] does, with T5 computing in another dtype; see [`T5Encoder::forward_in`].
    ///
    /// # Errors
    /// Those of [`TextEncoder::encode`] and [`T5Encoder::forward_in`].
    pub fn encode_in<'a>(&self, prompt: impl Into<Prompt<'a>>, compute: Kind) -> Result<(Conditioning, Unseen)> {
        let Prompt { clip, t5 } = prompt.into();
        let (pooled, clip_unseen) = pooled(&self.clip, &self.clip_tokenizer, clip)?;
        let (prompt_embeds, t5_unseen) = states(&self.t5, &self.t5_tokenizer, t5, self.max_sequence_length, compute)?;
        Ok((Conditioning { prompt_embeds, pooled }, t5_unseen.and(clip_unseen)))
    }

    /// Encodes a prompt in which parentheses weigh words ([`weighted_texts`]), as ComfyUI does for FLUX.1. T5 computes in
    /// `compute`; see [`T5Encoder::forward_in`].
    ///
    /// The states of a token of weight w are `(z - empty) * w + empty`, in f32, with T5's states `empty` of an empty prompt
    /// at the same position, for which T5 runs once more. CLIP's pooled vector is that of the text without the markup:
    /// weights do not change it. Each piece is tokenized on its own, so a word that a parenthesis divides has other
    /// tokens. The reported unseen text is without the markup. A prompt without a weight other than 1 has the bytes of
    /// [`TextEncoder::encode_in`].
    ///
    /// Source: Comfy-Org/ComfyUI `comfy/sd1_clip.py` (`tokenize_with_weights`, `encode_token_weights`) and
    /// `comfy/text_encoders/flux.py`. A CLIP prompt beyond 77 tokens is truncated here, between any two tokens.
    ///
    /// # Errors
    /// Those of [`TextEncoder::encode_in`] and [`weighted_texts`].
    pub fn encode_weighted<'a>(&self, prompt: impl Into<Prompt<'a>>, compute: Kind) -> Result<(Conditioning, Unseen)> {
        let Prompt { clip, t5 } = prompt.into();
        let (clip, t5) = (weighted_texts(clip)?, weighted_texts(t5)?);
        let (tokens, _) = self
            .clip_tokenizer
            .encode_pieces(&texts(&clip), clip_length(&self.clip))?;
        let (pooled, clip_unseen) = pooled_of(&self.clip, tokens)?;
        let length = self.max_sequence_length;
        let (tokens, piece_of) = self.t5_tokenizer.encode_pieces(&texts(&t5), length)?;
        let (mut prompt_embeds, t5_unseen) = states_of(&self.t5, tokens, compute)?;
        let mut weights = vec![1.0; length];
        for (weight, piece) in weights.iter_mut().zip(piece_of) {
            *weight = t5.get(piece).map_or(1.0, |piece| piece.weight as f32);
        }
        if weights.iter().any(|weight| *weight != 1.0) {
            let (empty, _) = states(&self.t5, &self.t5_tokenizer, "", length, compute)?;
            prompt_embeds = weighted(&prompt_embeds, &empty, &weights)?;
            check::finite(Stage::TextT5, &prompt_embeds)?;
        }
        Ok((Conditioning { prompt_embeds, pooled }, t5_unseen.and(clip_unseen)))
    }

    /// Returns the text of a prompt that [`TextEncoder::encode`] would not see, without encoding it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn unseen<'a>(&self, prompt: impl Into<Prompt<'a>>) -> Result<Unseen> {
        let Prompt { clip, t5 } = prompt.into();
        let clip = self.clip_tokenizer.encode(clip, clip_length(&self.clip))?;
        let t5 = self.t5_tokenizer.encode(t5, self.max_sequence_length)?;
        Ok(Unseen::of(ModelPart::T5, t5).and(Unseen::of(ModelPart::Clip, clip)))
    }

    /// Returns the CLIP encoder.
    #[must_use]
    pub fn clip(&self) -> &ClipEncoder {
        &self.clip
    }

    /// Returns the T5 encoder.
    #[must_use]
    pub fn t5(&self) -> &T5Encoder {
        &self.t5
    }
}

/// Encodes a prompt, padded or truncated to `length` tokens, to T5's states [1, `length`, D]: the half of
/// [`TextEncoder::encode`] that needs only T5.
///
/// # Errors
/// Those of [`Tokenizer::encode`] and [`T5Encoder::forward`]; [`Error::NotFinite`] if the states contain a
/// NaN or an infinity.
pub fn prompt_embeds(t5: &T5Encoder, tokenizer: &Tokenizer, prompt: &str, length: usize) -> Result<(Tensor, Unseen)> {
    states(t5, tokenizer, prompt, length, t5.compute())
}

fn states(
    t5: &T5Encoder,
    tokenizer: &Tokenizer,
    prompt: &str,
    length: usize,
    compute: Kind,
) -> Result<(Tensor, Unseen)> {
    states_of(t5, tokenizer.encode(prompt, length)?, compute)
}

fn states_of(t5: &T5Encoder, tokens: Encoded, compute: Kind) -> Result<(Tensor, Unseen)> {
    let states = t5.forward_in(&tokens.tensor()?, compute)?;
    check::finite(Stage::TextT5, &states)?;
    Ok((states, Unseen::of(ModelPart::T5, tokens)))
}

/// Encodes a prompt, padded or truncated to CLIP's number of positions, to the pooled vector [1, P]: the half
/// of [`TextEncoder::encode`] that needs only CLIP.
///
/// # Errors
/// Those of [`Tokenizer::encode`] and [`ClipEncoder::forward`]; [`Error::NotFinite`] if the vector contains a
/// NaN or an infinity.
pub fn pooled(clip: &ClipEncoder, tokenizer: &Tokenizer, prompt: &str) -> Result<(Tensor, Unseen)> {
    pooled_of(clip, tokenizer.encode(prompt, clip_length(clip))?)
}

fn pooled_of(clip: &ClipEncoder, tokens: Encoded) -> Result<(Tensor, Unseen)> {
    let pooled = clip.forward(&tokens.tensor()?)?.pooled;
    check::finite(Stage::TextClip, &pooled)?;
    Ok((pooled, Unseen::of(ModelPart::Clip, tokens)))
}

/// Returns the texts of pieces.
fn texts(pieces: &[WeightedText]) -> Vec<&str> {
    pieces.iter().map(|piece| piece.text.as_str()).collect()
}

/// Weighs states [1, T, D] against those of an empty prompt, one weight a token; those of weight 1 keep their bits.
fn weighted(states: &Tensor, empty: &Tensor, weights: &[f32]) -> Result<Tensor> {
    let (kind, device) = (states.kind(), states.device());
    let weights = Tensor::f_from_slice(weights)?.f_to_device(device)?.f_view([1, -1, 1])?;
    let (z, empty) = (states.f_to_kind(Kind::Float)?, empty.f_to_kind(Kind::Float)?);
    let weighed = z.f_sub(&empty)?.f_mul(&weights)?.f_add(&empty)?;
    Ok(z.f_where_self(&weights.f_eq(1.0)?, &weighed)?.f_to_kind(kind)?)
}

/// Returns the number of tokens of CLIP's prompts.
fn clip_length(clip: &ClipEncoder) -> usize {
    usize::try_from(clip.config().max_position_embeddings).unwrap_or_default()
}

/// Checks that every id of the tokenizer is a row of the encoder's embedding table.
fn fits(encoder: ModelPart, tokenizer: &Tokenizer, vocab_size: i64) -> Result<()> {
    if i64::try_from(tokenizer.vocab_size()).is_ok_and(|size| size <= vocab_size) {
        return Ok(());
    }
    let size = tokenizer.vocab_size();
    let reason = format!(
        "its ids go up to {}, the {encoder} model has {vocab_size}; take the tokenizer that came with the model",
        size.saturating_sub(1)
    );
    Err(Error::Tokenizer {
        path: tokenizer.path().to_owned(),
        reason,
    })
}

/// Checks that CLIP finds the pooled vector at the tokenizer's end token. Tokens that were added to the
/// vocabulary, as by textual inversion, may have higher ids.
fn ends_for_clip(tokenizer: &Tokenizer, config: &ClipConfig) -> Result<()> {
    let end = tokenizer.end_id();
    let expected = match config.eos_token_id {
        HIGHEST_ID => end.max(tokenizer.highest_own_id()),
        id => id,
    };
    if end == expected {
        return Ok(());
    }
    let reason = format!("it ends prompts with token {end}, the CLIP model expects {expected}");
    Err(of_another_encoder(tokenizer, &reason))
}

/// Checks that the tokenizer adds nothing but an end token.
fn ends_for_t5(tokenizer: &Tokenizer) -> Result<()> {
    match tokenizer.added_tokens() {
        1 => Ok(()),
        added => {
            let reason = format!("it adds {added} tokens to a prompt, the T5 model expects an end token only");
            Err(of_another_encoder(tokenizer, &reason))
        }
    }
}

fn of_another_encoder(tokenizer: &Tokenizer, reason: &str) -> Error {
    Error::Tokenizer {
        path: tokenizer.path().to_owned(),
        reason: format!("{reason}; take the tokenizer that came with the model"),
    }
}
