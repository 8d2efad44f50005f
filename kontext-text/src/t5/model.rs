//! The T5 encoder.
//!
//! Source: huggingface/transformers v4.57.6 `models/t5/modeling_t5.py` `T5EncoderModel`, `T5Stack`.

use std::path::Path;

use kontext_core::{Device, During, Kind, Result, Tensor};
use kontext_nn::Weights;
use kontext_nn::{Embedding, RmsNorm, Slots};

use super::T5Config;
use super::bias::RelativeBias;
use super::gguf;
use super::layer::Block;
use crate::{ids, load};

/// Token ids to hidden states.
///
/// There is no mask: padding is attended to, as FLUX.1 was trained.
///
/// # Example
/// ```
/// use kontext_core::{Kind, Tensor};
/// use kontext_nn::Weights;
/// use kontext_text::{T5Config, T5Encoder};
///
/// let tiny = T5Config { d_model: 16, d_ff: 32, num_layers: 2, num_heads: 2, d_kv: 8, vocab_size: 50, ..T5Config::xxl() };
/// let t5 = T5Encoder::new(&Weights::synthetic(0), &tiny, Kind::Float)?;
/// let states = t5.forward(&Tensor::from_slice(&[7_i64, 42, 1, 0]).unsqueeze(0))?;
/// assert_eq!(states.size(), [1, 4, 16]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct T5Encoder {
    embedding: Embedding,
    bias: RelativeBias,
    blocks: Vec<Block>,
    norm: RmsNorm,
    config: T5Config,
    compute: Kind,
    slots: Slots,
}

impl T5Encoder {
    /// A tensor that only T5 has, as transformers names it.
    pub const SIGN: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";
    /// The same in GGUF files.
    pub const GGUF_SIGN: &str = gguf::SIGN;

    /// Reads the encoder by transformers' names: `shared.weight` (or `encoder.embed_tokens.weight`),
    /// `encoder.block.N…`, `encoder.final_layer_norm.weight`.
    ///
    /// Weights are kept in the kind that `w` gives them and widened to `compute` layer by layer.
    /// In f16 `wo` is read, and the sum of the residuals kept, in f32: activations of T5 XXL leave
    /// f16's range. bf16 is safe.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`]; [`kontext_core::Error::Checkpoint`] for a configuration that
    /// cannot be, [`kontext_core::Error::InvalidArgument`] where `compute` is no float.
    pub fn new(w: &Weights, config: &T5Config, compute: Kind) -> Result<Self> {
        load::computes(compute)?;
        config.validate(w.path())?;
        let (w, slots) = &w.with_slots();
        let table = if w.contains("shared.weight") {
            "shared"
        } else {
            "encoder.embed_tokens"
        };
        let encoder = w.at("encoder");
        let blocks = encoder.at("block");
        let first = blocks.at("0.layer.0.SelfAttention.relative_attention_bias");
        Ok(Self {
            embedding: Embedding::new(&w.at(table), config.vocab_size, config.d_model)?,
            bias: RelativeBias::new(&first, config)?,
            blocks: (0..config.num_layers)
                .map(|i| Block::new(&blocks.at(i.to_string()), config, compute))
                .collect::<Result<_>>()?,
            norm: RmsNorm::new(
                &encoder.at("final_layer_norm"),
                "weight",
                config.d_model,
                config.layer_norm_epsilon,
            )?,
            config: config.clone(),
            compute,
            slots: slots.clone(),
        })
    }

    /// Opens a folder of transformers (`config.json` beside one or more safetensors files) or a
    /// single safetensors or GGUF file (`t5xxl_fp16.safetensors`), also one that holds a whole model, whose shapes
    /// tell the configuration.
    ///
    /// `compute` is the kind of the result: bf16 on a GPU, f32 on a CPU. What is narrower in the file, or packed,
    /// stays so in memory and is widened layer by layer: on a CPU, T5 XXL in bf16 takes 9.5 GB and computes in f32,
    /// which would take 19 GB. What is wider is converted. Tensors of the decoder are left out.
    ///
    /// # Errors
    /// Those of [`Weights::open`], [`T5Config::infer`] and [`T5Encoder::new`], and
    /// [`kontext_core::Error::Checkpoint`] where tensors are left that T5 does not know.
    pub fn open(path: impl AsRef<Path>, compute: Kind, device: Device) -> Result<Self> {
        load::computes(compute)?;
        let path = path.as_ref();
        Self::from_weights(&Self::weights(path)?.at_most(compute).device(device), path, compute)
    }

    /// The encoder's weights by transformers' names, from a file of any form that [`T5Encoder::open`] takes.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn weights(path: impl AsRef<Path>) -> Result<Weights> {
        Ok(gguf::renamed(Weights::open(path)?.part(&[Self::SIGN, gguf::SIGN])))
    }

    /// Builds the model from weights that are open, with the `config.json` in `folder` or, where
    /// there is none, the sizes of its tensors, and closes their account.
    ///
    /// # Errors
    /// As [`T5Encoder::open`].
    pub fn from_weights(weights: &Weights, folder: &Path, compute: Kind) -> Result<Self> {
        let config = Self::config_of(weights, folder)?;
        let model = Self::new(weights, &config, compute).during("loading T5")?;
        weights.ignore(is_extra);
        weights.finish()?;
        Ok(model)
    }

    /// The `config.json` in `folder` or, where there is none, the sizes of the tensors.
    ///
    /// # Errors
    /// Those of reading the file, and of [`T5Config::infer`].
    pub fn config_of(weights: &Weights, folder: &Path) -> Result<T5Config> {
        load::config(folder)?.map_or_else(|| T5Config::infer(weights), Ok)
    }

    /// Ids [B, T] (i64, any device) to states [B, T, `d_model`] in the kind that is computed in.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another rank, [`kontext_core::Error::InvalidArgument`]
    /// for an id outside the vocabulary, [`kontext_core::Error::Torch`] where libtorch fails.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let [_, length] = ids::check(ids, self.config.vocab_size)?;
        self.states(ids, length).during("encoding the prompt with T5")
    }

    fn states(&self, ids: &Tensor, length: i64) -> Result<Tensor> {
        let bias = self.bias.forward(length, self.compute)?; // [1, H, T, T]
        let mut x = self.embedding.forward(&ids.f_to_device(self.device())?, self.compute)?; // [B, T, D]
        for block in &self.blocks {
            x = block.forward(&x, &bias)?;
        }
        Ok(self.norm.forward(&x)?.f_to_kind(self.compute)?)
    }

    /// Where the changes of its linear layers are set: `encoder.block.0.layer.0.SelfAttention.q`.
    #[must_use]
    pub fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Its sizes.
    #[must_use]
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// The kind that it computes in and returns.
    #[must_use]
    pub fn compute(&self) -> Kind {
        self.compute
    }

    /// Where its weights lie.
    #[must_use]
    pub fn device(&self) -> Device {
        self.bias.device()
    }
}

/// Tensors that T5 files hold and the encoder does not need: a second copy of the embedding, and the decoder.
fn is_extra(name: &str) -> bool {
    /// `logit_scale` comes from a wrapper class, `spiece_model` is the tokenizer's file.
    const NAMES: [&str; 4] = [
        "shared.weight",
        "encoder.embed_tokens.weight",
        "logit_scale",
        "spiece_model",
    ];
    let decoder = name.starts_with("decoder.") || name.starts_with("lm_head.");
    decoder || NAMES.contains(&name)
}
