//! Muon: orthogonalised updates of matrices, so that every direction of a layer learns at the same rate.
//!
//! Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with its
//! coefficients; the scale by which it shares AdamW's learning rate is that of Liu et al., "Muon is Scalable
//! for LLM Training" (arXiv 2502.16982), section 2.2.

use std::collections::BTreeMap;

use kontext_core::{Result, Tensor};
use kontext_dit::names::is_block;

use super::Params;

/// Newton-Schulz iterations; after five, singular values are between 0.7 and 1.2.
const ROUNDS: usize = 5;
/// Coefficients of the quintic that maps singular values in (0, 1] towards one.
const COEFFICIENTS: (f64, f64, f64) = (3.4445, -4.7750, 2.0315);
/// Approximate root mean square of an AdamW step, divided by its learning rate.
const ADAM_RMS: f64 = 0.2;

/// A matrix within the flat values; a fused layer holds several.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    /// Offset of the layer's weight.
    offset: i64,
    /// Columns of the layer.
    stride: i64,
    row: i64,
    rows: i64,
    column: i64,
    columns: i64,
}

/// The matrices updated by Muon: those within the transformer's blocks, except modulation; and the inner
/// convolutions of an autoencoder, with each kernel as a row.
#[derive(Debug)]
pub(crate) struct Muon {
    groups: BTreeMap<(i64, i64), Vec<Block>>,
}

impl Muon {
    pub(crate) fn new(params: &Params) -> Self {
        let mut groups = BTreeMap::<_, Vec<Block>>::new();
        for (name, offset, shape) in params.layout() {
            for block in blocks(name, offset, &shape) {
                groups.entry((block.rows, block.columns)).or_default().push(block);
            }
        }
        Self { groups }
    }

    /// Overwrites the entries of `step` [N] that belong to its matrices with their orthogonalised momentum,
    /// given the mean of gradients [N].
    pub(crate) fn direct(&self, mean: &Tensor, step: &Tensor) -> Result<()> {
        for ((rows, columns), blocks) in &self.groups {
            let parts = blocks.iter().map(|b| b.view(mean)).collect::<Result<Vec<_>>>()?;
            let scale = ADAM_RMS * (*rows.max(columns) as f64).sqrt();
            let directions = orthogonal(&Tensor::f_stack(&parts, 0)?)?.f_mul_scalar(scale)?;
            for (index, block) in blocks.iter().enumerate() {
                block.view(step)?.f_copy_(&directions.f_get(index as i64)?)?;
            }
        }
        Ok(())
    }
}

impl Block {
    /// Returns the view [rows, columns] of a flat tensor.
    fn view(&self, flat: &Tensor) -> Result<Tensor> {
        let start = self.offset + self.row * self.stride + self.column;
        Ok(flat.f_as_strided([self.rows, self.columns], [self.stride, 1], start)?)
    }
}

/// Returns the matrices in one trained tensor, by its name in the transformer or the autoencoder.
fn blocks(name: &str, offset: i64, shape: &[i64]) -> Vec<Block> {
    if let &[rows, input, height, width] = shape {
        let outer = name.contains("conv_in") || name.contains("conv_out");
        let columns = input * height * width;
        let whole = Block {
            offset,
            stride: columns,
            row: 0,
            rows,
            column: 0,
            columns,
        };
        return if outer { Vec::new() } else { vec![whole] };
    }
    let inner = is_block(name);
    let &[rows, columns] = shape else { return Vec::new() };
    if !inner || !name.ends_with(".weight") || name.contains("_mod.") || name.contains("modulation") {
        return Vec::new();
    }
    let whole = Block {
        offset,
        stride: columns,
        row: 0,
        rows,
        column: 0,
        columns,
    };
    let by_rows = |heights: &[i64]| {
        let mut row = 0;
        let mut cut = |&height: &i64| {
            row += height;
            Block {
                row: row - height,
                rows: height,
                ..whole.clone()
            }
        };
        heights.iter().map(&mut cut).collect()
    };
    if name.ends_with("qkv.weight") {
        by_rows(&[rows / 3; 3])
    } else if name.ends_with("linear1.weight") && rows > 3 * columns {
        by_rows(&[columns, columns, columns, rows - 3 * columns])
    } else if name.ends_with("linear2.weight") && columns > rows {
        let attention = Block {
            columns: rows,
            ..whole.clone()
        };
        vec![
            attention,
            Block {
                column: rows,
                columns: columns - rows,
                ..whole
            },
        ]
    } else {
        vec![whole]
    }
}

/// Returns the approximately nearest orthogonal matrices, [N, rows, columns] as the input.
fn orthogonal(matrices: &Tensor) -> Result<Tensor> {
    let (a, b, c) = COEFFICIENTS;
    let tall = matrices.size()[1] > matrices.size()[2];
    let mut x = if tall {
        matrices.f_transpose(1, 2)?
    } else {
        matrices.shallow_clone()
    };
    let norm = x
        .f_square()?
        .f_sum_dim_intlist([1_i64, 2].as_slice(), true, x.kind())?
        .f_sqrt()?
        .f_add_scalar(1e-7)?;
    x = x.f_div(&norm)?;
    for _ in 0..ROUNDS {
        let gram = x.f_bmm(&x.f_transpose(1, 2)?)?;
        let polynomial = gram.f_bmm(&gram)?.f_mul_scalar(c)?.f_add(&gram.f_mul_scalar(b)?)?;
        x = polynomial.f_bmm(&x)?.f_add(&x.f_mul_scalar(a)?)?;
    }
    Ok(if tall { x.f_transpose(1, 2)? } else { x })
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, Kind, noise};

    use super::*;

    #[test]
    fn singular_values_come_near_one() {
        let x = noise::randn(&[2, 12, 5], 0, Kind::Float, Device::Cpu).unwrap();
        let y = orthogonal(&x).unwrap();
        let (_, singular, _) = y.svd(true, false);
        let (low, high) = (singular.min().double_value(&[]), singular.max().double_value(&[]));
        assert!(low > 0.6 && high < 1.3, "{low} {high}");
    }

    #[test]
    fn fused_layers_come_apart() {
        let count = |name: &str, shape: &[i64]| blocks(name, 0, shape).len();
        assert_eq!(count("double_blocks.0.img_attn.qkv.weight", &[12, 4]), 3);
        assert_eq!(count("single_blocks.1.linear1.weight", &[28, 4]), 4);
        assert_eq!(count("single_blocks.1.linear2.weight", &[4, 20]), 2);
        assert_eq!(count("double_blocks.0.img_mlp.0.weight", &[16, 4]), 1);
        assert_eq!(count("double_blocks.0.img_mod.lin.weight", &[24, 4]), 0);
        assert_eq!(count("img_in.weight", &[4, 4]), 0);
        assert_eq!(count("encoder.down_blocks.0.resnets.0.conv1.weight", &[4, 8, 3, 3]), 1);
        assert_eq!(count("decoder.conv_out.weight", &[3, 8, 3, 3]), 0);
    }

    #[test]
    fn only_the_blocks_matrices_are_redirected() {
        let random = |name: &str, shape: [i64; 2]| {
            (
                name.to_owned(),
                noise::randn(&shape, 1, Kind::Float, Device::Cpu).unwrap(),
            )
        };
        let params = Params::new(
            &[
                random("img_in.weight", [2, 3]),
                random("single_blocks.0.linear2.weight", [2, 6]),
            ],
            Device::Cpu,
        );
        let params = params.unwrap();
        let step = params.flat().zeros_like();
        Muon::new(&params).direct(params.flat(), &step).unwrap();
        assert_eq!(step.narrow(0, 0, 6).abs().max().double_value(&[]), 0.0);
        assert!(step.narrow(0, 6, 12).abs().min().double_value(&[]) > 0.0);
    }
}
