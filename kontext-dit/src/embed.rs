//! Embedding of timestep, guidance and pooled text into one vector.
//!
//! Source: black-forest-labs/flux@802fb47 `src/flux/modules/layers.py`, `MLPEmbedder`, and
//! `model.py`, `Flux.forward`.

use kontext_core::{Kind, Result, Tensor};
use kontext_nn::{Linear, Weights, ops};

use crate::DitConfig;

/// Width of the sinusoidal embedding.
const SINUSOID: i64 = 256;

/// An MLP of two linear layers with SiLU in between.
#[derive(Debug)]
struct MlpEmbedder {
    in_layer: Linear,
    out_layer: Linear,
}

impl MlpEmbedder {
    fn new(w: &Weights, input: i64, width: i64) -> Result<Self> {
        Ok(Self {
            in_layer: Linear::new(&w.at("in_layer"), input, width)?,
            out_layer: Linear::new(&w.at("out_layer"), width, width)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out_layer.forward(&self.in_layer.forward(x)?.f_silu()?)
    }
}

/// Embedding of all inputs of the modulation into one vector.
#[derive(Debug)]
pub(crate) struct VectorEmbed {
    time: MlpEmbedder,
    guidance: Option<MlpEmbedder>,
    pooled: MlpEmbedder,
}

impl VectorEmbed {
    pub(crate) fn new(w: &Weights, config: &DitConfig) -> Result<Self> {
        let width = config.width();
        let guidance = config
            .guidance_embed
            .then(|| MlpEmbedder::new(&w.at("guidance_in"), SINUSOID, width));
        Ok(Self {
            time: MlpEmbedder::new(&w.at("time_in"), SINUSOID, width)?,
            guidance: guidance.transpose()?,
            pooled: MlpEmbedder::new(&w.at("vector_in"), config.pooled_dim, width)?,
        })
    }

    /// Computes `time(t) + guidance(g) + pooled(p)` for every step and every item of the batch.
    ///
    /// Shapes: `times` [S] in f32 and `guidance` of one or S values, or none for a model without it, on a scale of 0 to
    /// 1000, `pooled` [B, P]; returns [S, B, D] in the dtype of `pooled`.
    pub(crate) fn forward(&self, times: &Tensor, guidance: &[f32], pooled: &Tensor) -> Result<Tensor> {
        let steps = self.times(times, guidance, pooled.kind())?; // [S, D]
        let pooled = self.pooled.forward(pooled)?; // [B, D]
        Ok(steps.f_unsqueeze(1)?.f_add(&pooled.f_unsqueeze(0)?)?)
    }

    /// Computes [`VectorEmbed::forward`] for one step with a separate time per item: `times` [B], returns
    /// [1, B, D].
    pub(crate) fn forward_items(&self, times: &Tensor, guidance: &[f32], pooled: &Tensor) -> Result<Tensor> {
        let items = self.times(times, guidance, pooled.kind())?; // [B, D]
        Ok(items.f_add(&self.pooled.forward(pooled)?)?.f_unsqueeze(0)?)
    }

    /// Computes `time(t) + guidance(g)`, [S, D].
    fn times(&self, times: &Tensor, guidance: &[f32], kind: Kind) -> Result<Tensor> {
        let sinusoid = |t: &Tensor| -> Result<Tensor> { Ok(ops::timestep_embedding(t, SINUSOID)?.f_to_kind(kind)?) };
        let times = self.time.forward(&sinusoid(times)?)?;
        match &self.guidance {
            Some(embedder) if !guidance.is_empty() => {
                let embed = |value: f32| -> Result<Tensor> {
                    let value = Tensor::f_from_slice(&[value])?.f_to_device(times.device())?;
                    embedder.forward(&sinusoid(&value)?)
                };
                Ok(times.f_add(&by_step(guidance, embed)?)?)
            }
            _ => Ok(times),
        }
    }
}

/// Embeds the values of steps: [1, D] for one value in all of them, else [S, D]. Each value is embedded by itself, so that
/// its row has the same bits in every run.
fn by_step(values: &[f32], embed: impl Fn(f32) -> Result<Tensor>) -> Result<Tensor> {
    let mut known: Vec<(f32, Tensor)> = Vec::new();
    let mut rows = Vec::with_capacity(values.len());
    for value in values {
        let same = |(other, _): &&(f32, Tensor)| other.to_bits() == value.to_bits();
        let row = match known.iter().find(same) {
            Some((_, row)) => row.shallow_clone(),
            None => {
                let row = embed(*value)?;
                known.push((*value, row.shallow_clone()));
                row
            }
        };
        rows.push(row);
    }
    match known.as_slice() {
        [(_, only)] => Ok(only.shallow_clone()),
        _ => Ok(Tensor::f_cat(&rows, 0)?),
    }
}
