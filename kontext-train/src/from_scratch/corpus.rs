//! The tokenised texts on which an encoder is trained, and their batches with masked words.

use std::collections::BTreeSet;
use std::path::Path;

use kontext_core::{Result, Tensor};
use kontext_text::Tokenizer;
use rand::RngExt;

use super::text_recipe::TextRecipe;
use crate::run::random::{Stream, generator, happens};

/// The tokenised texts of an encoder.
pub(super) struct Corpus {
    /// Token ids of each text, padded.
    ids: Vec<Vec<i64>>,
    /// Number of tokens of each text before its padding.
    used: Vec<usize>,
    /// The token that replaces a masked word.
    mask: i64,
    /// Index of the first word's token.
    first_word: usize,
}

/// The texts of a step.
pub(super) struct Batch {
    /// [B, T].
    pub(super) ids: Tensor,
    /// `ids` with masked words. [B, T].
    pub(super) masked: Tensor,
    /// Weight of each token in the loss: 1 for masked words, 0.1 for other words, 0 for the rest. [B, T].
    pub(super) weights: Tensor,
}

impl Corpus {
    pub(super) fn open(
        tokenizer: &Path,
        texts: &BTreeSet<String>,
        length: usize,
        mask: i64,
        first_word: usize,
    ) -> Result<Self> {
        let tokenizer = Tokenizer::open(tokenizer)?;
        let encoded = texts
            .iter()
            .map(|text| tokenizer.encode(text, length))
            .collect::<Result<Vec<_>>>()?;
        let (ids, used) = encoded.into_iter().map(|e| (e.ids, e.used)).unzip();
        Ok(Self {
            ids,
            used,
            mask,
            first_word,
        })
    }

    pub(super) fn batch(&self, recipe: &TextRecipe, step: u64) -> Result<Batch> {
        let mut rng = generator(recipe.seed, Stream::Step, step);
        let (mut ids, mut masked, mut weights) = (Vec::new(), Vec::new(), Vec::<f32>::new());
        for _ in 0..recipe.batch {
            let text = rng.random_range(0..self.ids.len());
            let last = self.used[text] - 1;
            for (index, &id) in self.ids[text].iter().enumerate() {
                let word = index >= self.first_word && index < last;
                let mask = word && happens(&mut rng, recipe.masked);
                ids.push(id);
                masked.push(if mask { self.mask } else { id });
                weights.push(if mask {
                    1.0
                } else if word {
                    0.1
                } else {
                    0.0
                });
            }
        }
        let shape = [recipe.batch as i64, -1];
        Ok(Batch {
            ids: Tensor::f_from_slice(&ids)?.f_reshape(shape)?,
            masked: Tensor::f_from_slice(&masked)?.f_reshape(shape)?,
            weights: Tensor::f_from_slice(&weights)?.f_reshape(shape)?,
        })
    }
}
