//! Relative position bias: a learnt scalar per head and token distance.
//!
//! Source: huggingface/transformers v4.57.6 `models/t5/modeling_t5.py`
//! `T5Attention._relative_position_bucket`, `compute_bias`.

use kontext_core::{Device, Kind, Result, Tensor};
use kontext_nn::Weights;

use super::T5Config;

/// Relative position bias, stored in layer 0 and added to the attention scores of every layer.
#[derive(Debug)]
pub(super) struct RelativeBias {
    weight: Tensor,
    max_distance: i64,
}

impl RelativeBias {
    /// Reads `weight` [buckets, H].
    pub(super) fn new(w: &Weights, config: &T5Config) -> Result<Self> {
        let weight = w.tensor("weight", &[config.relative_attention_num_buckets, config.num_heads])?;
        Ok(Self {
            weight,
            max_distance: config.relative_attention_max_distance,
        })
    }

    /// Computes the bias [1, H, T, T] of queries (rows) and keys (columns) for sequences of `length` tokens.
    pub(super) fn forward(&self, length: i64, kind: Kind) -> Result<Tensor> {
        let [buckets, _] = kontext_core::check::dims("relative_attention_bias", &self.weight, "[buckets, H]")?;
        let table: Vec<i64> = (1 - length..length)
            .map(|d| bucket(d, buckets, self.max_distance))
            .collect();
        let device = self.weight.device();
        let by_distance = Tensor::f_embedding(
            &self.weight,
            &Tensor::f_from_slice(&table)?.f_to_device(device)?,
            -1,
            false,
            false,
        )?;
        let position = Tensor::f_arange(length, (Kind::Int64, device))?;
        let distance = position
            .f_unsqueeze(0)?
            .f_sub(&position.f_unsqueeze(1)?)?
            .f_add_scalar(length - 1)?;
        let bias = by_distance
            .f_to_kind(kind)?
            .f_index_select(0, &distance.f_flatten(0, -1)?)?; // [T * T, H]
        Ok(bias
            .f_transpose(0, 1)?
            .f_contiguous()?
            .f_reshape([1, -1, length, length])?)
    }

    /// Returns the device of the weights.
    pub(super) fn device(&self) -> Device {
        self.weight.device()
    }
}

/// Returns the bucket of `distance = key - query`: the second half of the buckets holds keys after the query;
/// within each half, the first half is exact and the rest logarithmic up to `max_distance`.
///
/// The reference computes the logarithm in f32; at the distances at which it steps exactly (16, 32, 64 and
/// 128 by default), `NUDGE` gives the same bucket on every machine.
fn bucket(distance: i64, buckets: i64, max_distance: i64) -> i64 {
    const NUDGE: f64 = 1e-6;
    let half = buckets / 2;
    let exact = half / 2;
    let (side, distance) = (if distance > 0 { half } else { 0 }, distance.abs());
    if distance < exact {
        return side + distance;
    }
    let log = (distance as f64 / exact as f64).ln() / (max_distance as f64 / exact as f64).ln();
    side + (exact + (log * (half - exact) as f64 + NUDGE) as i64).min(half - 1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// Computes the bucket in integers: `8 + floor(8 log16(d / 8))` steps at `d^8 >= 8^8 16^k`.
    fn exactly(distance: i64) -> i64 {
        let d = distance.unsigned_abs().min(127) as u128;
        let within = if d < 8 {
            d as i64
        } else {
            8 + (0..8).filter(|&k| d.pow(8) >= 8_u128.pow(8) * 16_u128.pow(k)).count() as i64 - 1
        };
        within + if distance > 0 { 16 } else { 0 }
    }

    #[test]
    fn buckets_follow_the_law_in_whole_numbers_at_every_distance() {
        for distance in -2048..=2048 {
            assert_eq!(bucket(distance, 32, 128), exactly(distance), "{distance}");
        }
    }

    #[test]
    fn buckets_match_the_reference_from_minus_300_to_300() {
        let fixture = kontext_fixtures::reference("t5.safetensors");
        let tensors: HashMap<_, _> = Tensor::read_safetensors(fixture).unwrap().into_iter().collect();
        let read = |name: &str| Vec::<i64>::try_from(&tensors[name]).unwrap();
        let ours: Vec<i64> = read("relative_position")
            .into_iter()
            .map(|d| bucket(d, 32, 128))
            .collect();
        assert_eq!(ours, read("bucket"));
    }

    #[test]
    fn a_bias_depends_on_key_minus_query_alone() {
        let config = T5Config {
            num_heads: 3,
            ..T5Config::xxl()
        };
        let bias = RelativeBias::new(&Weights::synthetic(0), &config).unwrap();
        for length in [1, 2, 160, 300] {
            let b = bias.forward(length, Kind::Float).unwrap();
            assert_eq!(b.size(), [1, 3, length, length]);
            let row = b.get(0).get(1).get(0);
            for key in [0, 1, 9, 200].into_iter().filter(|&k| k < length) {
                let expected = bias.weight.double_value(&[exactly(key), 1]);
                assert_eq!(row.double_value(&[key]), expected, "{key}");
                assert_eq!(b.double_value(&[0, 1, length - 1 - key, length - 1]), expected, "{key}");
            }
        }
    }
}
