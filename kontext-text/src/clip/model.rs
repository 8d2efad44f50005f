//! CLIP's text model, pooled at the end token.
//!
//! Source: huggingface/transformers v4.57.6 `models/clip/modeling_clip.py` `CLIPTextModel`.

use std::path::Path;

use kontext_core::{Device, During, Error, Kind, ModelPart, Result, Stage, Tensor};
use kontext_nn::{AdapterSlots, Embedding, LayerNorm, Weights};

use super::config::{ClipConfig, HIGHEST_ID};
use super::layer::Layer;
use crate::{ids, load};

/// CLIP's text model: token ids to hidden states and their pooled vector, without projection.
///
/// # Example
/// ```
/// use kontext_core::{Kind, Tensor};
/// use kontext_nn::Weights;
/// use kontext_text::{ClipConfig, ClipEncoder};
///
/// let tiny = ClipConfig { hidden_size: 16, intermediate_size: 32, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 50, ..ClipConfig::large() };
/// let clip = ClipEncoder::new(&Weights::synthetic(0), &tiny, Kind::Float)?;
/// let output = clip.forward(&Tensor::from_slice(&[48_i64, 7, 49, 49]).unsqueeze(0))?;
/// assert_eq!(output.pooled, output.states.select(1, 2)); // the first end token
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug)]
pub struct ClipEncoder {
    token_embedding: Embedding,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
    config: ClipConfig,
    compute: Kind,
    slots: AdapterSlots,
}

/// Output of CLIP's text model, in its compute dtype.
#[derive(Debug)]
pub struct ClipOutput {
    /// Hidden states of all tokens after the final norm [B, T, D].
    pub states: Tensor,
    /// Pooled vector: the state at the first end token [B, D].
    pub pooled: Tensor,
}

impl ClipEncoder {
    /// Tensor names, one of which every CLIP text model has.
    pub const SIGNS: [&str; 2] = [
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        "encoder.layers.0.self_attn.q_proj.weight",
    ];

    /// Reads the text model by transformers' names, with or without the prefix `text_model.`.
    ///
    /// Weights keep the dtype of `w` and are cast to `compute` layer by layer.
    ///
    /// # Errors
    /// Those of [`Weights::tensor`]; [`Error::Checkpoint`] for an invalid configuration,
    /// [`Error::InvalidArgument`] if `compute` is not a floating-point type of at least 16 bits.
    pub fn new(w: &Weights, config: &ClipConfig, compute: Kind) -> Result<Self> {
        load::computes(compute)?;
        config.validate(w.path())?;
        let bare = !w.contains("text_model.embeddings.token_embedding.weight")
            && w.contains("embeddings.token_embedding.weight");
        let (w, slots) = w.at(if bare { "" } else { "text_model" }).with_slots();
        let (embeddings, layers, width) = (w.at("embeddings"), w.at("encoder.layers"), config.hidden_size);
        Ok(Self {
            token_embedding: Embedding::new(&embeddings.at("token_embedding"), config.vocab_size, width)?,
            position_embedding: embeddings
                .tensor("position_embedding.weight", &[config.max_position_embeddings, width])?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::new(&layers.at(i.to_string()), config))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::new(&w.at("final_layer_norm"), width, config.layer_norm_eps)?,
            config: config.clone(),
            compute,
            slots,
        })
    }

    /// Opens a transformers folder (`config.json` and the safetensors file) or a single safetensors file
    /// (`clip_l.safetensors`), whose configuration is inferred from its shapes.
    ///
    /// `compute` is the dtype of the result; narrower weights stay narrow in memory. The vision model of a
    /// full CLIP and the projections are ignored.
    ///
    /// # Errors
    /// Those of [`Weights::open`], [`ClipConfig::infer`] and [`ClipEncoder::new`], and [`Error::Checkpoint`]
    /// if the file holds tensors unknown to CLIP.
    pub fn open(path: impl AsRef<Path>, compute: Kind, device: Device) -> Result<Self> {
        load::computes(compute)?;
        let path = path.as_ref();
        Self::from_weights(&Self::weights(path)?.at_most(compute).device(device), path, compute)
    }

    /// Opens the text model's weights, from any folder or file that [`ClipEncoder::open`] takes.
    ///
    /// # Errors
    /// Those of [`Weights::open`].
    pub fn weights(path: impl AsRef<Path>) -> Result<Weights> {
        Ok(Weights::open(path)?.part(&Self::SIGNS))
    }

    /// Builds the model from open weights, configured by the `config.json` in `folder` or, without one, by
    /// the tensors' shapes, and checks that no tensor is left unused.
    ///
    /// # Errors
    /// As [`ClipEncoder::open`].
    pub fn from_weights(weights: &Weights, folder: &Path, compute: Kind) -> Result<Self> {
        let config = match load::config(folder)? {
            Some(config) => config,
            None => ClipConfig::infer(weights)?,
        };
        let model = Self::new(weights, &config, compute).during(Stage::LoadPart { part: ModelPart::Clip })?;
        weights.ignore(is_extra);
        weights.finish()?;
        Ok(model)
    }

    /// Encodes ids [B, T] (i64, any device), T at most `max_position_embeddings`, each row with an end token.
    ///
    /// # Errors
    /// [`Error::Shape`] for another rank, [`Error::InvalidArgument`] for too many tokens, an id outside the
    /// vocabulary or no end token, [`Error::Torch`] if libtorch fails.
    pub fn forward(&self, ids: &Tensor) -> Result<ClipOutput> {
        let [_, length] = ids::check(ids, self.config.vocab_size)?;
        if length > self.config.max_position_embeddings {
            let most = format!("at most {} tokens", self.config.max_position_embeddings);
            return Err(Error::invalid("ids", most, length));
        }
        let ends = self.ends(ids)?;
        let output = self.states(ids, length).and_then(|states| pool(states, &ends));
        output.during(Stage::TextClip)
    }

    /// Finds the position of the first end token of each row.
    fn ends(&self, ids: &Tensor) -> Result<Vec<i64>> {
        let rows = ids.f_to_device(Device::Cpu)?;
        let end = match self.config.eos_token_id {
            // `argmax` may return any of several equal ids; the first is needed.
            HIGHEST_ID => rows.f_amax([-1], true)?,
            end => Tensor::f_full([1], end, (Kind::Int64, Device::Cpu))?,
        };
        let matches = rows.f_eq_tensor(&end)?.f_to_kind(Kind::Int64)?;
        let rows = Vec::<Vec<i64>>::try_from(&matches)?;
        let missing = || {
            Error::invalid(
                "ids",
                format!("an end token {} in each row", self.config.eos_token_id),
                "none",
            )
        };
        rows.iter()
            .map(|row| {
                row.iter()
                    .position(|&is| is == 1)
                    .map(|at| at as i64)
                    .ok_or_else(missing)
            })
            .collect()
    }

    fn states(&self, ids: &Tensor, length: i64) -> Result<Tensor> {
        let (device, kind) = (self.device(), self.compute);
        let positions = self.position_embedding.f_narrow(0, 0, length)?.f_to_kind(kind)?;
        let mut x = self
            .token_embedding
            .forward(&ids.f_to_device(device)?, kind)?
            .f_add(&positions)?; // [B, T, D]
        let mask = Tensor::f_full([length, length], f64::NEG_INFINITY, (kind, device))?.f_triu(1)?; // causal
        for layer in &self.layers {
            x = layer.forward(&x, &mask)?;
        }
        self.final_layer_norm.forward(&x)
    }

    /// Returns the adapter slots of the linear layers, by the file's names:
    /// `text_model.encoder.layers.0.mlp.fc1`, or the same without `text_model.` if the file has no prefix.
    #[must_use]
    pub fn slots(&self) -> &AdapterSlots {
        &self.slots
    }

    /// Returns the configuration.
    #[must_use]
    pub fn config(&self) -> &ClipConfig {
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
        self.position_embedding.device()
    }
}

/// Pools the states: selects each row's state at its position in `ends`.
fn pool(states: Tensor, ends: &[i64]) -> Result<ClipOutput> {
    let rows = ends
        .iter()
        .enumerate()
        .map(|(row, &end)| Ok(states.f_select(0, row as i64)?.f_select(0, end)?));
    let pooled = Tensor::f_stack(&rows.collect::<Result<Vec<_>>>()?, 0)?;
    Ok(ClipOutput { states, pooled })
}

/// Returns `true` for tensors of CLIP files not needed by the text model.
fn is_extra(name: &str) -> bool {
    /// The last two are buffers saved by older transformers, without and with the prefix.
    const NAMES: [&str; 5] = [
        "logit_scale",
        "text_projection.weight",
        "visual_projection.weight",
        "embeddings.position_ids",
        "text_model.embeddings.position_ids",
    ];
    NAMES.contains(&name) || name.starts_with("vision_model.")
}
