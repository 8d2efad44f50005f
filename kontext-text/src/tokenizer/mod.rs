//! One tokenizer for both encoders: prompts to padded token ids, and what did not fit.

mod clip_bpe;
mod files;

use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, Tensor};
use tokenizers::PostProcessor;

/// A tokenizer of CLIP or T5, opened from the files that transformers saves.
///
/// It is `Send + Sync`, and [`Tokenizer::encode`] changes nothing in it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    pad: u32,
    vocab_size: usize,
    whole_words_lowered: bool,
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, begin and end tokens included, padded to the length that was asked for.
    pub ids: Vec<i64>,
    /// Number of ids before the padding.
    pub used: usize,
    /// The end of the prompt that did not fit, in the prompt's own words.
    pub cut: Option<String>,
}

impl Encoded {
    /// The ids as a batch of one [1, T], i64 on the CPU.
    ///
    /// # Errors
    /// [`Error::Torch`] where libtorch fails.
    pub fn tensor(&self) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(&self.ids)?.f_unsqueeze(0)?)
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = f.debug_struct("Tokenizer");
        text.field("path", &self.path)
            .field("vocab_size", &self.vocab_size)
            .field("pad", &self.pad)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens a folder or a file of it.
    ///
    /// * `vocab.json` with `merges.txt` is CLIP's, and gives the ids of transformers'
    ///   `CLIPTokenizer` (without the optional ftfy). It goes before a `tokenizer.json` in the same
    ///   folder, as in the reference pipelines; the two differ in Chinese and control characters.
    /// * `tokenizer.json` is read as it stands, but for its stored truncation and padding.
    ///
    /// The padding token is that of `tokenizer_config.json` and `special_tokens_map.json` beside
    /// them; where they do not say, `<pad>` if there is one, else the end token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] where there is no usable file, with what to do; [`Error::Io`] where a
    /// file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        files::open(path.as_ref())
    }

    /// Finishes a tokenizer: settles its padding token and drops what it stored about lengths.
    fn new(mut inner: tokenizers::Tokenizer, path: &Path, pad: Option<&str>) -> Result<Self> {
        let unusable = |reason: String| Error::Tokenizer {
            path: path.to_owned(),
            reason,
        };
        inner.with_truncation(None).map_err(|e| unusable(e.to_string()))?;
        inner.with_padding(None);
        let empty = inner.encode("", true).map_err(|e| unusable(e.to_string()))?;
        let no_end = || unusable(format!("it adds no end token to a prompt; {}", files::REMEDY));
        let end = *empty.get_ids().last().ok_or_else(no_end)?;
        let pad = match pad {
            Some(token) => inner
                .token_to_id(token)
                .ok_or_else(|| unusable(format!("its padding token `{token}` is not in its vocabulary")))?,
            None => inner.token_to_id("<pad>").unwrap_or(end),
        };
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        Ok(Self {
            inner,
            path: path.to_owned(),
            pad,
            vocab_size,
            whole_words_lowered: false,
        })
    }

    /// One more than the largest id that it gives.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id that fills a short prompt up.
    #[must_use]
    pub fn pad_id(&self) -> i64 {
        i64::from(self.pad)
    }

    /// The file or folder that it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Encodes a prompt to exactly `max_length` ids.
    ///
    /// A short prompt is padded at its end; of a long one the last tokens are cut, while the begin
    /// and end tokens stay.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `max_length` has no room for the begin and end tokens,
    /// [`Error::Tokenizer`] where the prompt cannot be encoded.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<Encoded> {
        let unusable = |e: tokenizers::Error| Error::Tokenizer {
            path: self.path.clone(),
            reason: e.to_string(),
        };
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let Some(room) = max_length.checked_sub(added) else {
            return Err(Error::invalid(
                "length in tokens",
                format!("at least {added}, for the tokens that every prompt has"),
                max_length,
            ));
        };
        let text = if self.whole_words_lowered {
            clip_bpe::final_sigmas(prompt)
        } else {
            prompt.into()
        };
        let mut tokens = self.inner.encode(text.as_ref(), false).map_err(unusable)?;
        let cut = tokens.get_offsets().get(room).map(|&(start, _)| tail(prompt, start));
        tokens.truncate(room, 0, tokenizers::TruncationDirection::Right);
        tokens.take_overflowing();
        let tokens = self.inner.post_process(tokens, None, true).map_err(unusable)?;
        let mut ids: Vec<i64> = tokens.get_ids().iter().map(|&id| i64::from(id)).collect();
        let used = ids.len();
        ids.resize(max_length.max(used), self.pad_id());
        Ok(Encoded { ids, used, cut })
    }
}

/// The prompt from byte `start` on, without leading white space. A start within a character (of
/// which a token holds a few bytes) moves to the character's beginning.
fn tail(prompt: &str, start: usize) -> String {
    let start = (0..=start)
        .rev()
        .find(|&at| prompt.is_char_boundary(at))
        .unwrap_or_default();
    prompt.get(start..).unwrap_or_default().trim_start().to_owned()
}
