//! The forms in which unit vectors of features are compared.

use kontext_core::{Kind, Result, Tensor};
use kontext_nn::Weights;

use super::features::Features;
use super::naming;

/// Guard against division by zero for all-zero features; lpips 0.1.4 and latent-diffusion add it to the norm.
const EPSILON: f64 = 1e-10;

/// Comparison of two unit vectors.
#[derive(Debug)]
pub(super) enum Form {
    /// Squared difference, weighted by one head per layer, [1, C, 1, 1].
    Weighted(Vec<Tensor>),
    /// Squared difference.
    Squares,
    /// 1 minus the cosine.
    Cosine,
}

impl Form {
    /// Returns the beginning of the distance's name.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Form::Weighted(_) => "lpips",
            Form::Squares => "pdist",
            Form::Cosine => "cosine",
        }
    }

    /// Compares the first half of a layer's features `x`, [2 B, C, H, W], with the second; returns the means over
    /// positions, [B], in f64.
    pub(super) fn means(&self, x: &Tensor, half: i64, layer: usize) -> Result<Tensor> {
        let norms = x
            .f_square()?
            .f_sum_dim_intlist([1_i64].as_slice(), true, None)?
            .f_sqrt()?;
        let unit = x.f_div(&norms.f_add_scalar(EPSILON)?)?;
        let (a, b) = (unit.f_narrow(0, 0, half)?, unit.f_narrow(0, half, half)?);
        let values = match self {
            Form::Cosine => a.f_mul(&b)?,
            Form::Squares | Form::Weighted(_) => a.f_sub(&b)?.f_square_()?,
        };
        let values = match self {
            Form::Weighted(heads) => match heads.get(layer) {
                Some(head) => values.f_mul(head)?,
                None => values,
            },
            Form::Squares | Form::Cosine => values,
        };
        let sums = values.f_sum_dim_intlist([1_i64].as_slice(), true, Kind::Float)?;
        let means = sums.f_mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Double)?;
        Ok(match self {
            Form::Cosine => means.f_neg()?.f_add_scalar(1.0)?,
            Form::Squares | Form::Weighted(_) => means,
        })
    }
}

/// Reads one head per layer, [1, C, 1, 1].
pub(super) fn read_heads(heads: &Weights, features: &Features) -> Result<Vec<Tensor>> {
    let weights = heads.clone().device(features.device()).kind(Kind::Float);
    let read = |(layer, channels): (usize, &i64)| {
        let names = naming::head(layer);
        let there = names.iter().find(|name| weights.contains(name)).or(names.first());
        weights.tensor(there.map_or("", String::as_str), &[1, *channels, 1, 1])
    };
    let read = features
        .backbone()
        .channels()
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<Vec<_>>>()?;
    // A whole LPIPS model may be given as the heads: its duplicates, network and colours are ignored.
    weights.ignore(|name| name.starts_with("net.") || name.starts_with("scaling_layer."));
    weights.ignore(|name| (0..read.len()).any(|layer| naming::head(layer).iter().any(|known| known == name)));
    weights.finish()?;
    Ok(read)
}
