//! Data passed between the encoders, the transformer and the sampler.

use tch::Tensor;

use crate::{Result, check};

/// A sequence of tokens with a position for each.
#[derive(Debug)]
pub struct Tokens {
    /// Features [B, L, C].
    pub features: Tensor,
    /// Positions [L, 3] in f32: (t, y, x), one row for each token.
    pub ids: Tensor,
}

impl Tokens {
    /// Joins features [B, L, C] with their positions [L, 3].
    ///
    /// # Errors
    /// [`crate::Error::Shape`] if the lengths differ.
    pub fn new(features: Tensor, ids: Tensor) -> Result<Self> {
        let [_, length, _] = check::dims("features", &features, "[B, L, C]")?;
        check::shape("ids", &ids, "[L, 3]", &[Some(length), Some(3)])?;
        Ok(Self { features, ids })
    }

    /// Returns the number of tokens of one sequence.
    #[must_use]
    pub fn len(&self) -> i64 {
        self.ids.size().first().copied().unwrap_or_default()
    }

    /// Returns `true` if there are no tokens.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Clone for Tokens {
    /// Shares the tensors' memory.
    fn clone(&self) -> Self {
        Self {
            features: self.features.shallow_clone(),
            ids: self.ids.shallow_clone(),
        }
    }
}

/// An encoded prompt.
#[derive(Debug)]
pub struct Conditioning {
    /// T5's hidden states [B, T, D]: the transformer's text tokens.
    pub prompt_embeds: Tensor,
    /// CLIP's pooled state [B, P], which modulates every block.
    pub pooled: Tensor,
}

impl Conditioning {
    /// Stacks two encoded prompts into one batch (a prompt and its negative).
    ///
    /// # Errors
    /// [`crate::Error::Torch`] if their lengths differ.
    pub fn stack(&self, other: &Self) -> Result<Self> {
        Ok(Self {
            prompt_embeds: Tensor::f_cat(&[&self.prompt_embeds, &other.prompt_embeds], 0)?,
            pooled: Tensor::f_cat(&[&self.pooled, &other.pooled], 0)?,
        })
    }
}

impl Clone for Conditioning {
    /// Shares the tensors' memory.
    fn clone(&self) -> Self {
        Self {
            prompt_embeds: self.prompt_embeds.shallow_clone(),
            pooled: self.pooled.shallow_clone(),
        }
    }
}
