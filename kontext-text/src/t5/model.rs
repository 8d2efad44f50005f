//! The T5 encoder.
//!
//! Source: huggingface/transformers v4.57.6 `models/t5/modeling_t5.py` `T5EncoderModel`, `T5Stack`.

use std::path::Path;

use kontext_core::{Device, During, Error, Kind, ModelPart, Result, Stage, Tensor};
use kontext_nn::{AdapterSlots, Embedding, RmsNorm, Weights};

use super::bias::RelativeBias;
use super::layer::{Block, scores_in};
use super::{T5Config, gguf};
use crate::{ids, load};

/// The T5 encoder: token ids to hidden states.
///
/// No attention mask: padding is attended to, as in FLUX.1's training.
///
/// # Example
/// ```
/// use kontext_core::{Kind, Tensor};
/// use kontext_nn::Weights;
/// use kontext_text::{T5Config, T5Encoder};
///
/// let tiny = T5Config { d_model: 16, d_ff: 32, num_layers: 2, num_heads: 2, d_kv: 8, vocab_size: 50,
/// ..T5Config::xxl() }; let t5 = T5Encoder::new(&Weights::synthetic(0), &tiny, Kind::Float)?; let states =
/// t5.forward(&Tensor::from_slice(&[7_i64, 42, 1, 0]).unsqueeze(0))?; assert_eq!(states.size(), [1, 4, 16]);
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
    slots: AdapterSlots,
}

impl T5Encoder {
    /// Name of a tensor that only T5 has, in transformers' naming.
    pub const SIGN: &str = "encoder.block.0.layer.0.SelfAttention.q.weight";
    /// Name of a tensor that only T5 has in a GGUF file.
    pub const GGUF_SIGN: &str = gguf::SIGN;

    /// Reads the encoder by transformers' names: `shared.weight` (or `encoder.embed_tokens.weight`),
    /// `encoder.block.N…`, `encoder.final_layer_norm.weight`.
    ///
    /// Weights keep the dtype of `w` and are cast to `compute` layer by layer. In f16, `wo` is read and the
    /// residual kept in f32: activations of T5 XXL exceed f16's range. bf16 is safe.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`]; [`kontext_core::Error::Checkpoint`] for an invalid configuration,
    /// [`kontext_core::Error::InvalidArgument`] if `compute` is not a floating-point type of at least 16
    /// bits.
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

    /// Opens a transformers folder (`config.json` and one or more safetensors files) or a single safetensors
    /// or GGUF file (`t5xxl_fp16.safetensors`, or a checkpoint of a whole model), whose configuration is
    /// inferred from its shapes.
    ///
    /// `compute` is the dtype of the result: bf16 on a GPU, f32 on a CPU without bf16 units. Narrower and
    /// quantised weights stay so in memory and are widened layer by layer: on a CPU, T5 XXL in bf16 takes 9.5
    /// GB and computes in f32, which would take 19 GB. Wider weights are converted at load. Decoder tensors
    /// are ignored.
    ///
    /// # Errors
    /// Those of [`Weights::open`], [`T5Config::infer`] and [`T5Encoder::new`], and
    /// [`kontext_core::Error::Checkpoint`] if the file holds tensors unknown to T5.
    pub fn open(path: impl AsRef<Path>, compute: Kind, device: Device) -> Result<Self> {
        load::computes(compute)?;
        let path = path.as_ref();
        Self::from_weights(&Self::weights(path)?.at_most(compute).device(device), path, compute)
    }

    /// Returns `true` if a tensor, in transformers' naming, belongs to one of the encoder's blocks.
    #[must_use]
    pub fn is_block(name: &str) -> bool {
        name.starts_with("encoder.block.")
    }

    /// Opens the encoder's weights by transformers' names, from any folder or file that [`T5Encoder::open`]
    /// takes.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn weights(path: impl AsRef<Path>) -> Result<Weights> {
        Ok(gguf::renamed(Weights::open(path)?.part(&[Self::SIGN, gguf::SIGN])))
    }

    /// Builds the model from open weights, configured by the `config.json` in `folder` or, without one, by
    /// the tensors' shapes, and checks that no tensor is left unused.
    ///
    /// # Errors
    /// As [`T5Encoder::open`].
    pub fn from_weights(weights: &Weights, folder: &Path, compute: Kind) -> Result<Self> {
        let config = Self::config_of(weights, folder)?;
        let model = Self::new(weights, &config, compute).during(Stage::LoadPart { part: ModelPart::T5 })?;
        weights.ignore(is_extra);
        weights.finish()?;
        Ok(model)
    }

    /// Reads the `config.json` in `folder` or, without one, infers the configuration from the tensors'
    /// shapes.
    ///
    /// # Errors
    /// Those of reading the file, [`Error::Checkpoint`](kontext_core::Error::Checkpoint) for a size of it out
    /// of range, and those of [`T5Config::infer`].
    pub fn config_of(weights: &Weights, folder: &Path) -> Result<T5Config> {
        match load::config::<T5Config>(folder)? {
            None => T5Config::infer(weights),
            Some(config) => {
                config.validate(&folder.join("config.json"))?;
                Ok(config)
            }
        }
    }

    /// Maps ids [B, T] (i64, any device) to states [B, T, `d_model`] in the compute dtype.
    ///
    /// # Errors
    /// [`kontext_core::Error::Shape`] for another rank, [`kontext_core::Error::InvalidArgument`] for an id
    /// outside the vocabulary, [`kontext_core::Error::Torch`] if libtorch fails.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        self.forward_in(ids, self.compute)
    }

    /// Maps ids to states as [`T5Encoder::forward`] does, computing in another dtype, f32 or bf16, and with
    /// that dtype of the states. Weights stay as they are and are cast to it layer by layer.
    ///
    /// # Errors
    /// Those of [`T5Encoder::forward`], and [`kontext_core::Error::InvalidArgument`] for f16 unless the
    /// encoder was built for it, and for other dtypes.
    pub fn forward_in(&self, ids: &Tensor, compute: Kind) -> Result<Tensor> {
        load::computes(compute)?;
        if (compute == Kind::Half) != (self.compute == Kind::Half) {
            let expected = format!("the encoder's, {:?}", self.compute);
            return Err(Error::invalid("dtype of T5", expected, format!("{compute:?}")));
        }
        let [_, length] = ids::check(ids, self.config.vocab_size)?;
        self.states(ids, length, compute).during(Stage::TextT5)
    }

    fn states(&self, ids: &Tensor, length: i64, compute: Kind) -> Result<Tensor> {
        let bias = self.bias.forward(length, scores_in(compute, self.device()))?; // [1, H, T, T]
        let mut x = self.embedding.forward(&ids.f_to_device(self.device())?, compute)?; // [B, T, D]
        for block in &self.blocks {
            x = block.forward(&x, &bias, compute)?;
        }
        Ok(self.norm.forward(&x)?.f_to_kind(compute)?)
    }

    /// Returns the adapter slots of the linear layers, named as in `encoder.block.0.layer.0.SelfAttention.q`.
    #[must_use]
    pub fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &T5Config {
        &self.config
    }

    /// Returns the dtype of the computation and the result.
    #[must_use]
    pub fn compute(&self) -> Kind {
        self.compute
    }

    /// Returns the device of the weights.
    #[must_use]
    pub fn device(&self) -> Device {
        self.bias.device()
    }
}

/// Returns `true` for tensors of T5 files not needed by the encoder: a second copy of the embedding, and the
/// decoder.
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
