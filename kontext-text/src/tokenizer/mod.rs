//! The tokenizer of both encoders: prompts to padded token ids, and the text that did not fit or is unknown.

mod checks;
mod clip_bpe;
mod files;
mod unknown;

use std::path::{Path, PathBuf};

use kontext_core::{Error, Result, Tensor, contain, range};
use tokenizers::PostProcessor;

/// A CLIP or T5 tokenizer, opened from files saved by transformers.
///
/// `Send + Sync`; [`Tokenizer::encode`] does not modify it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    end: u32,
    pad: u32,
    vocab_size: usize,
    /// Id and name of the token for texts outside the vocabulary.
    unknown: Option<(u32, String)>,
    whole_words_lowered: bool,
}

/// A prompt as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, including the begin and end tokens, padded to the requested length.
    pub ids: Vec<i64>,
    /// Number of ids before the padding.
    pub used: usize,
    /// The end of the prompt that did not fit, verbatim.
    pub cut: Option<String>,
    /// Texts of the rest that are not in the vocabulary, verbatim, each once. T5's tokenizer gives its id 2,
    /// `<unk>`, to each run of such characters. CLIP's published vocabulary has none.
    pub unknown: Vec<String>,
}

impl Encoded {
    /// Returns the ids as a batch of one [1, T], i64 on the CPU.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
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
    /// Largest prompt in bytes of UTF-8 (256 KiB): a hundred times more than T5's 512 tokens hold. A longer one is
    /// refused, because the time to encode it grows with its length and cannot be cancelled.
    pub const LONGEST_PROMPT: usize = 1 << 18;

    /// Most ids of a prompt. T5's scores grow with their square: at this number those of FLUX.1's T5 take more than
    /// a terabyte.
    pub const MOST_TOKENS: usize = 65_536;

    /// Opens a tokenizer's folder or one of its files.
    ///
    /// * `vocab.json` with `merges.txt` is CLIP's format and gives the ids of transformers' `CLIPTokenizer`
    ///   (without the optional ftfy). It takes precedence over a `tokenizer.json` in the same folder, as in
    ///   the reference pipelines; the two differ in Chinese and control characters.
    /// * `tokenizer.json` is used as is, except for its stored truncation and padding, and a BPE model's dropout,
    ///   which would give a prompt other ids at each run.
    ///
    /// The padding token is read from `tokenizer_config.json` and `special_tokens_map.json` in the same
    /// folder; the default is `<pad>` if the vocabulary has it, otherwise the end token.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] with a remedy if there is no usable file, also if the tokenizers crate panics on it
    /// (the program's panic hook then still runs); [`Error::Io`] if a file cannot be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        contain(|| files::open(path)).unwrap_or_else(|panic| Err(crashed(path, &panic)))
    }

    /// Lists the files that [`Tokenizer::open`] reads for this path, also if one of them is missing or damaged;
    /// none for a folder that it refuses.
    #[must_use]
    pub fn files(path: impl AsRef<Path>) -> Vec<PathBuf> {
        files::read_by_opening(path.as_ref())
    }

    /// Finishes a tokenizer: determines its padding token and drops its stored truncation and padding.
    fn new(mut inner: tokenizers::Tokenizer, path: &Path, pad: Option<&str>) -> Result<Self> {
        let failed = |e: tokenizers::Error| unusable(path, &e);
        inner.with_truncation(None).map_err(failed)?;
        inner.with_padding(None);
        let empty = inner.encode("", true).map_err(failed)?;
        let no_end = || unusable(path, "it adds no end token to a prompt");
        let end = *empty.get_ids().last().ok_or_else(no_end)?;
        let pad = match pad {
            Some(token) => inner.token_to_id(token).ok_or_else(|| {
                unusable(
                    path,
                    format_args!("its padding token `{token}` is not in its vocabulary"),
                )
            })?,
            None => inner.token_to_id("<pad>").unwrap_or(end),
        };
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let unknown = unknown::unknown_id(inner.get_model()).and_then(|id| Some((id, inner.id_to_token(id)?)));
        Ok(Self {
            inner,
            path: path.to_owned(),
            end,
            pad,
            vocab_size,
            unknown,
            whole_words_lowered: false,
        })
    }

    /// Returns the vocabulary size: the largest id plus one.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the highest id of the vocabulary without the tokens that were added to it.
    pub(crate) fn highest_own_id(&self) -> i64 {
        let own = self.inner.get_vocab(false);
        own.values().max().map_or(0, |&id| i64::from(id))
    }

    /// Returns the id that pads short prompts.
    #[must_use]
    pub fn pad_id(&self) -> i64 {
        i64::from(self.pad)
    }

    /// Returns the id that ends every prompt.
    #[must_use]
    pub fn end_id(&self) -> i64 {
        i64::from(self.end)
    }

    /// Returns the number of tokens that are added to the text of every prompt: 2 for CLIP (begin and end), 1 for
    /// T5 (end).
    #[must_use]
    pub fn added_tokens(&self) -> usize {
        self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false))
    }

    /// Returns the file or folder it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that a prompt has at most [`Tokenizer::LONGEST_PROMPT`] bytes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] otherwise.
    pub fn check_length(prompt: &str) -> Result<()> {
        if prompt.len() <= Self::LONGEST_PROMPT {
            return Ok(());
        }
        let expected = format!("at most {} bytes", Self::LONGEST_PROMPT);
        Err(Error::invalid("prompt", expected, format!("{} bytes", prompt.len())))
    }

    /// Encodes a prompt to exactly `max_length` ids.
    ///
    /// A short prompt is padded at its end; a long one is truncated at its end, keeping the begin and end
    /// tokens.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `max_length` is too small for the begin and end tokens or above
    /// [`Tokenizer::MOST_TOKENS`], or the prompt is longer than [`Tokenizer::LONGEST_PROMPT`];
    /// [`Error::Tokenizer`] if the prompt cannot be encoded.
    pub fn encode(&self, prompt: &str, max_length: usize) -> Result<Encoded> {
        Ok(self.encode_pieces(&[prompt], max_length)?.0)
    }

    /// Encodes a prompt as [`Tokenizer::encode`] does, with its pieces one by one, so that no token is of two of them.
    /// Returns the piece of each token, too, without those that are added to every prompt.
    pub(crate) fn encode_pieces(&self, pieces: &[&str], max_length: usize) -> Result<(Encoded, Vec<usize>)> {
        pieces.iter().try_for_each(|piece| Self::check_length(piece))?;
        contain(|| self.encode_checked(pieces, max_length)).unwrap_or_else(|panic| Err(crashed(&self.path, &panic)))
    }

    fn encode_checked(&self, pieces: &[&str], max_length: usize) -> Result<(Encoded, Vec<usize>)> {
        let failed = |e: tokenizers::Error| unusable(&self.path, &e);
        range::within("length in tokens", max_length, 0..=Self::MOST_TOKENS)?;
        let added = self.added_tokens();
        let Some(room) = max_length.checked_sub(added) else {
            return Err(Error::invalid(
                "length in tokens",
                format!("at least {added}, for the tokens that every prompt has"),
                max_length,
            ));
        };
        let mut all = tokenizers::Encoding::default();
        let (mut piece_of, mut unknown, mut cut) = (Vec::new(), Vec::new(), None);
        for (index, piece) in pieces.iter().enumerate() {
            let text = if self.whole_words_lowered {
                clip_bpe::final_sigmas(piece)
            } else {
                (*piece).into()
            };
            let mut tokens = self.inner.encode(text.as_ref(), false).map_err(failed)?;
            let room = room - all.len();
            let rest = tokens.get_offsets().get(room).map(|&(start, _)| start);
            tokens.truncate(room, 0, tokenizers::TruncationDirection::Right);
            tokens.take_overflowing();
            if let Some((id, name)) = &self.unknown {
                let texts = unknown::unknown_texts(piece, &tokens, *id, name);
                unknown.extend(
                    texts
                        .into_iter()
                        .filter(|text| !unknown.contains(text))
                        .collect::<Vec<_>>(),
                );
            }
            piece_of.resize(piece_of.len() + tokens.len(), index);
            all.merge_with(tokens, false);
            if let Some(start) = rest {
                cut = Some(tail(&pieces[index..].concat(), start));
                break;
            }
        }
        let tokens = self.inner.post_process(all, None, true).map_err(failed)?;
        let mut ids: Vec<i64> = tokens.get_ids().iter().map(|&id| i64::from(id)).collect();
        let used = ids.len();
        ids.resize(max_length.max(used), self.pad_id());
        let encoded = Encoded {
            ids,
            used,
            cut,
            unknown,
        };
        Ok((encoded, piece_of))
    }
}

/// Returns the error for a panic of the tokenizers crate.
fn crashed(path: &Path, panic: &str) -> Error {
    unusable(path, format_args!("the tokenizers library failed on it ({panic})"))
}

/// Returns the error for files that cannot be used, with the remedy.
fn unusable(path: &Path, reason: impl std::fmt::Display) -> Error {
    Error::Tokenizer {
        path: path.to_owned(),
        reason: format!("{reason}; {}", files::REMEDY),
    }
}

/// Returns the prompt from byte `start` on, without leading white space. A start within a character (a token
/// may hold a few of its bytes) moves back to the character's first byte.
fn tail(prompt: &str, start: usize) -> String {
    let start = boundary(prompt, (0..=start).rev());
    prompt.get(start..).unwrap_or_default().trim_start().to_owned()
}

/// Returns the first of these byte offsets that is between characters.
fn boundary(prompt: &str, mut offsets: impl Iterator<Item = usize>) -> usize {
    offsets.find(|&at| prompt.is_char_boundary(at)).unwrap_or_default()
}
