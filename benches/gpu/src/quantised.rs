//! Random weights of transformers, made at memory speed, also for blocks that are quantised to fp8 as they are
//! read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use kontext::{Device, Dit, DitConfig, Kind, Quantize, Tensor, Weights};
use kontext_core::noise;

/// Values that are drawn for matrices with a number of columns, which larger ones repeat: no multiple of a row, so
/// that no rows are equal.
const DRAWN: i64 = (1 << 20) + 7;
/// Most values of a tensor that are drawn for it.
const SMALL: i64 = 1 << 16;
/// Values between the beginnings of two matrices, a prime.
const STRIDE: i64 = 611_953;
const SEED: u64 = 3;

/// Returns [`plain`] weights for a model that quantises its blocks and multiplies them in fp8.
pub(crate) fn weights(config: &DitConfig) -> anyhow::Result<Weights> {
    Ok(plain(config)?.quantized(Some(Quantize::Fp8)).fp8_products(true))
}

/// Returns weights in bf16 in memory. Large matrices are views of a few tensors, so a model of any depth needs little
/// memory before it is read.
pub(crate) fn plain(config: &DitConfig) -> anyhow::Result<Weights> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let shapes = blank.shapes();
    let mut longest = BTreeMap::new();
    for shape in shapes.values() {
        let most = longest.entry(columns(shape)).or_insert(0);
        *most = count(shape).max(*most);
    }
    let drawn = Weights::synthetic(SEED).kind(Kind::BFloat16);
    let (mut pools, mut tensors) = (BTreeMap::new(), Vec::new());
    for (index, (name, shape)) in (0..).zip(shapes) {
        let (columns, count) = (columns(&shape), count(&shape));
        if count <= SMALL {
            let tensor = drawn.tensor(&name, &shape)?;
            tensors.push((name, tensor));
            continue;
        }
        let pool = match pools.entry(columns) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let most = longest.get(&columns).copied().unwrap_or(count);
                entry.insert(pool(columns, most + DRAWN)?)
            }
        };
        let part = pool.f_narrow(0, index * STRIDE % DRAWN, count)?;
        tensors.push((name, part.f_reshape(&shape)?));
    }
    Ok(Weights::from_tensors(tensors))
}

/// Returns values with the deviation of trained weights of this number of inputs.
fn pool(columns: i64, count: i64) -> anyhow::Result<Tensor> {
    let drawn = noise::randn(&[DRAWN], SEED, Kind::Float, Device::Cpu)?;
    let drawn = drawn.f_div_scalar((columns as f64).sqrt())?.f_to_kind(Kind::BFloat16)?;
    let times = count.unsigned_abs().div_ceil(DRAWN.unsigned_abs()) as i64;
    Ok(drawn.f_repeat([times])?)
}

fn columns(shape: &[i64]) -> i64 {
    shape.last().copied().unwrap_or(1)
}

fn count(shape: &[i64]) -> i64 {
    shape.iter().product()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a layer that is drawn, and of larger ones that share memory.
    #[test]
    fn matrices_have_the_deviation_of_their_width_and_no_equal_rows() {
        let config = DitConfig {
            heads: 8,
            mlp_width: 4096,
            double_blocks: 1,
            single_blocks: 1,
            ..DitConfig::kontext_dev()
        };
        let weights = weights(&config).expect("made");
        let read = |name: &str| {
            let shape = weights.shape_of(name).expect("there");
            weights.tensor(name, &shape).expect("read").to_kind(Kind::Float)
        };
        let large = ["img_attn.qkv", "img_mlp.0"].map(|layer| read(&format!("double_blocks.0.{layer}.weight")));
        for weight in large.iter().chain([&read("final_layer.linear.weight")]) {
            let deviation = weight.std(true).double_value(&[]) * (weight.size()[1] as f64).sqrt();
            assert!((deviation - 1.0).abs() < 0.02, "{deviation}");
        }
        let [qkv, mlp] = large;
        let normed = |rows: &Tensor| rows / rows.norm_scalaropt_dim(2.0, [1], true);
        let cosines = normed(&qkv.narrow(0, 0, 8)).matmul(&normed(&mlp).tr());
        assert!(cosines.abs().max().double_value(&[]) < 0.3, "{cosines}");
    }
}
