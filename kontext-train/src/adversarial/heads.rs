//! The critic's heads: small convolutional networks, one after each chosen block of the teacher.
//!
//! Source: arXiv 2301.09515 (StyleGAN-T) section 3.2 and its `networks/discriminator.py`, as used by LADD.

use kontext_core::{Device, Error, Kind, ModelPart, Result, Tensor};
use kontext_sampler::Grid;
use rand::RngExt;

use super::initial_heads::{FREQUENCIES, HeadSizes, initial};
use super::spectral::Spectral;
use crate::objective::{AdversarialObjective, GROUPS};
use crate::optim::{AdamWConfig, Learner, LearnerConfig, Params};
use crate::run::Snapshot;
use crate::run::random::{Stream, generator};

const SLOPE: f64 = 0.2;
const NORM_EPS: f64 = 1e-5;
/// Name of the singular vectors in a state, `[N]`: left and right of each convolution, in the order of the
/// heads.
const RECORD: &str = "critic.spectral";
const HINT: &str = "the last saved state, if any, is kept; lower objective.critic_rate, and go on from the state by \
    `accept_changes = [\"objective.critic_rate\"]` in the recipe";

/// Values through which a gradient passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Through {
    /// The heads' inputs.
    Inputs,
    /// The heads' values and inputs.
    Values,
}

/// The heads with their optimizer.
#[derive(Debug)]
pub(crate) struct Heads {
    pub(crate) learner: Learner,
    heads: Vec<Head>,
    width: i64,
}

/// A head: 1x1 convolution to its width, residual 3x3 convolution, 1x1 convolution, and a projection on the
/// condition.
#[derive(Debug)]
struct Head {
    reduce: Convolution,
    residual: Convolution,
    out: Convolution,
    norms: [(Tensor, Tensor); 2],
    condition: (Tensor, Tensor),
}

#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    spectral: Spectral,
}

impl Heads {
    /// Draws new heads.
    pub(crate) fn new(objective: &AdversarialObjective, sizes: HeadSizes, seed: u64, device: Device) -> Result<Self> {
        let tensors = initial(objective.head_width, sizes, seed)?;
        Self::of(objective, &tensors, seed, device)
    }

    /// Takes these values.
    pub(crate) fn of(
        objective: &AdversarialObjective,
        tensors: &[(String, Tensor)],
        seed: u64,
        device: Device,
    ) -> Result<Self> {
        let config = LearnerConfig {
            prefix: "critic.",
            optimizer: AdamWConfig {
                beta1: objective.critic_beta1,
                beta2: objective.critic_beta2,
                weight_decay: 0.0,
                ..AdamWConfig::default()
            },
            ema: None,
            clip: f64::INFINITY,
            part: ModelPart::Transformer,
            hint: HINT,
        };
        let learner = Learner::new(Params::new(tensors, device)?, config)?;
        let count = (0..).take_while(|index| learner.params.get(&format!("{index}.out.bias")).is_some());
        let heads = count.map(|index| Head::new(&learner.params, index, seed, device));
        Ok(Self {
            heads: heads.collect::<Result<_>>()?,
            learner,
            width: objective.head_width,
        })
    }

    /// Takes one power iteration of each spectral norm: once in each step, before its first pass.
    pub(crate) fn advance(&mut self) -> Result<()> {
        for convolution in self.heads.iter_mut().flat_map(Head::convolutions_mut) {
            convolution.spectral.advance(&convolution.weight)?;
        }
        Ok(())
    }

    /// Returns the logits [B, heads * L] of features, [B, L, D] for each head, and their condition [B, P + 64].
    pub(crate) fn logits(
        &self,
        features: &[Tensor],
        condition: &Tensor,
        grid: Grid,
        through: Through,
    ) -> Result<Tensor> {
        if features.len() != self.heads.len() {
            return Err(Error::bug("another number of features than of heads"));
        }
        let all = self.heads.iter().zip(features);
        let logits = all.map(|(head, features)| head.logits(features, condition, grid, self.width, through));
        Ok(Tensor::f_cat(&logits.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// Returns the singular vectors for a state.
    pub(crate) fn record(&self) -> Result<(String, Tensor)> {
        let vectors: Vec<&Tensor> = self.heads.iter().flat_map(Head::vectors).collect();
        Ok((RECORD.to_owned(), Tensor::f_cat(&vectors, 0)?))
    }

    /// Takes the singular vectors out of a state.
    ///
    /// # Errors
    /// A checkpoint error if it has none of these sizes.
    pub(crate) fn restore(&mut self, state: &Snapshot) -> Result<()> {
        let count: i64 = self.heads.iter().flat_map(Head::vectors).map(|v| v.size()[0]).sum();
        let record = state.record(RECORD)?.filter(|record| record.size() == [count]);
        let other = || {
            let reason = format!("it has no `{RECORD}` of {count} values; start in another folder");
            Error::config(state.path(), reason)
        };
        self.set_vectors(&record.ok_or_else(other)?)
    }

    /// Takes singular vectors `[N]`, in the order of [`Heads::record`].
    pub(crate) fn set_vectors(&mut self, values: &Tensor) -> Result<()> {
        let mut start = 0;
        let mut next = |vector: &Tensor| -> Result<Tensor> {
            let length = vector.size()[0];
            start += length;
            let own = values.f_narrow(0, start - length, length)?;
            Ok(own.f_to_device(vector.device())?.f_detach_copy()?)
        };
        for convolution in self.heads.iter_mut().flat_map(Head::convolutions_mut) {
            let spectral = &mut convolution.spectral;
            spectral.left = next(&spectral.left)?;
            spectral.right = next(&spectral.right)?;
        }
        Ok(())
    }
}

impl Head {
    fn new(params: &Params, index: usize, seed: u64, device: Device) -> Result<Self> {
        let get = |name: &str| {
            let name = format!("{index}.{name}");
            let found = params.get(&name).map(Tensor::shallow_clone);
            found.ok_or_else(|| Error::bug(format!("no `{name}` among the values of the critic")))
        };
        let pair = |name: &str| Ok::<_, Error>((get(&format!("{name}.weight"))?, get(&format!("{name}.bias"))?));
        let mut rng = generator(seed, Stream::Heads, (1 << 32) + index as u64);
        let mut convolution = |name: &str| {
            let (weight, bias) = pair(name)?;
            let spectral = Spectral::new(&weight, rng.random(), device)?;
            Ok::<_, Error>(Convolution { weight, bias, spectral })
        };
        Ok(Self {
            reduce: convolution("reduce")?,
            residual: convolution("residual")?,
            out: convolution("out")?,
            norms: [pair("norm1")?, pair("norm2")?],
            condition: pair("condition")?,
        })
    }

    fn convolutions_mut(&mut self) -> [&mut Convolution; 3] {
        [&mut self.reduce, &mut self.residual, &mut self.out]
    }

    fn vectors(&self) -> impl Iterator<Item = &Tensor> {
        let convolutions = [&self.reduce, &self.residual, &self.out];
        convolutions
            .into_iter()
            .flat_map(|convolution| [&convolution.spectral.left, &convolution.spectral.right])
    }

    fn logits(
        &self,
        features: &Tensor,
        condition: &Tensor,
        grid: Grid,
        width: i64,
        through: Through,
    ) -> Result<Tensor> {
        let (batch, channels) = (features.size()[0], features.size()[2]);
        let x = features
            .f_transpose(1, 2)?
            .f_reshape([batch, channels, grid.rows, grid.cols])?;
        let norm = |x: &Tensor, (weight, bias): &(Tensor, Tensor)| -> Result<Tensor> {
            let (weight, bias) = (through.of(weight)?, through.of(bias)?);
            let x = x.f_group_norm(GROUPS, Some(&weight), Some(&bias), NORM_EPS, false)?;
            // max(x, slope * x) is the leaky rectifier.
            Ok(x.f_maximum(&x.f_mul_scalar(SLOPE)?)?)
        };
        let x = norm(&self.reduce.forward(&x, 0, through)?, &self.norms[0])?;
        let change = norm(&self.residual.forward(&x, 1, through)?, &self.norms[1])?;
        let x = x.f_add(&change)?.f_mul_scalar(std::f64::consts::FRAC_1_SQRT_2)?;
        let x = self.out.forward(&x, 0, through)?;
        let (weight, bias) = (through.of(&self.condition.0)?, through.of(&self.condition.1)?);
        let projection = condition
            .f_linear(&weight, Some(&bias))?
            .f_reshape([batch, width, 1, 1])?
            .f_mul_scalar(1.0 / (width as f64).sqrt())?;
        let logits = x
            .f_mul(&projection)?
            .f_sum_dim_intlist([1_i64].as_slice(), false, Kind::Float)?;
        Ok(logits.f_reshape([batch, -1])?)
    }
}

impl Convolution {
    fn forward(&self, x: &Tensor, padding: i64, through: Through) -> Result<Tensor> {
        let weight = self.spectral.normalised(&through.of(&self.weight)?)?;
        let bias = through.of(&self.bias)?;
        Ok(x.f_conv2d(&weight, Some(&bias), [1, 1], [padding, padding], [1, 1], 1)?)
    }
}

impl Through {
    /// Returns a trained tensor, or the same values outside of its graph.
    fn of(self, tensor: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Values => tensor.shallow_clone(),
            Self::Inputs => tensor.f_detach()?,
        })
    }
}

/// Returns the condition [B, pooled + 64] of pooled prompts [B, pooled] and noise levels.
pub(crate) fn condition(pooled: &Tensor, levels: &[f64]) -> Result<Tensor> {
    let levels: Vec<f32> = levels.iter().map(|level| *level as f32).collect();
    let levels = Tensor::f_from_slice(&levels)?
        .f_to_device(pooled.device())?
        .f_unsqueeze(1)?; // [B, 1]
    let exponents = Tensor::f_linspace(0.0, 1000_f64.ln(), FREQUENCIES, (Kind::Float, pooled.device()))?;
    let angles = levels.f_mul(&exponents.f_exp()?)?; // [B, 32]
    let pooled = pooled.f_to_kind(Kind::Float)?;
    Ok(Tensor::f_cat(&[pooled, angles.f_sin()?, angles.f_cos()?], 1)?)
}
