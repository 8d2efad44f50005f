//! A step's products in fp8, computed apart from it: a CPU widens the codes, multiplies and scales in several operations,
//! where a GPU has one.

use std::ops::Range;

use kontext::{Device, DitConfig, Kind, Tensor};
use kontext_nn::{Fp8Rows, Linear};

use super::Way;
use super::step::weights;

/// The products of a step, with inputs of their sizes.
pub(super) struct Fp8Products(Vec<Product>);

struct Product {
    layer: Linear,
    input: Fp8Rows,
    features: Range<i64>,
}

impl Product {
    fn new(layer: Linear, [tokens, input]: [i64; 2], features: Range<i64>) -> anyhow::Result<Self> {
        let zeros = Tensor::f_zeros([1, tokens, input], (Kind::BFloat16, Device::Cpu))?;
        Ok(Self {
            layer,
            input: Fp8Rows::quantise(&zeros)?,
            features,
        })
    }
}

impl Fp8Products {
    pub(super) fn new(config: &DitConfig, [text, target, reference]: [i64; 3], way: Way) -> anyhow::Result<Self> {
        let weights = weights(config, way)?;
        let (width, mlp) = (config.width(), config.mlp_width);
        let mut all = Vec::new();
        for block in 0..config.double_blocks {
            let block = weights.at(format!("double_blocks.{block}"));
            for (stream, tokens) in [("txt", text), ("img", target + reference)] {
                for (layer, input, output) in [
                    ("attn.qkv", width, 3 * width),
                    ("attn.proj", width, width),
                    ("mlp.0", width, mlp),
                    ("mlp.2", mlp, width),
                ] {
                    let layer = Linear::new(&block.at(format!("{stream}_{layer}")), input, output)?;
                    all.push(Product::new(layer, [tokens, input], 0..output)?);
                }
            }
        }
        let tokens = text + target + reference;
        for block in 0..config.single_blocks {
            let is_last = block + 1 == config.single_blocks;
            let block = weights.at(format!("single_blocks.{block}"));
            let linear1 = || Linear::new(&block.at("linear1"), width, 3 * width + mlp);
            let linear2 = Linear::new(&block.at("linear2"), width + mlp, width)?;
            // The last block computes keys and values of all tokens, and the rest of the target's.
            let rest = if is_last { target } else { tokens };
            if is_last {
                all.push(Product::new(linear1()?, [target, width], 0..width)?);
                all.push(Product::new(linear1()?, [tokens, width], width..3 * width)?);
            } else {
                all.push(Product::new(linear1()?, [tokens, width], 0..3 * width)?);
            }
            all.push(Product::new(linear1()?, [rest, width], 3 * width..3 * width + mlp)?);
            if way.kernels {
                all.push(Product::new(linear2, [rest, width + mlp], 0..width)?);
            } else {
                let (of_attention, of_mlp) = linear2.split_input(width)?;
                all.push(Product::new(of_attention, [rest, width], 0..width)?);
                all.push(Product::new(of_mlp, [rest, mlp], 0..width)?);
            }
        }
        Ok(Self(all))
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn compute(&self) -> anyhow::Result<()> {
        for product in &self.0 {
            let features = product.features.clone();
            drop(product.layer.forward_fp8(&product.input, features, Kind::BFloat16)?);
        }
        Ok(())
    }
}
