//! The matrix that an adapter adds to a weight, kept in factors.
//!
//! Source: arXiv 2106.09685 (LoRA), section 4.1; KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/modules/lokr.py`
//! (LoKr) and `loha.py` (LoHa); huggingface/peft 0.21 `src/peft/tuners/{lora,lokr,loha}/layer.py`.

use std::convert::Infallible;
use std::ops::Range;

use kontext_core::{Error, Result};
use tch::{Device, Kind, Tensor};

use crate::ops::swap_halves;

/// A matrix [rows, in] in factors, which are applied to the input.
#[derive(Debug)]
pub(super) enum Delta {
    /// `up @ down`: [rows, r] and [r, in].
    LowRank { down: Tensor, up: Tensor },
    /// The Kronecker product `(first ...) ⊗ (second ...)`, whose factors may be products themselves.
    Kronecker { first: Vec<Tensor>, second: Vec<Tensor> },
    /// `(a0 @ b0) * (a1 @ b1)`, element-wise.
    Hadamard { a: [Tensor; 2], b: [Tensor; 2] },
    /// The matrix itself.
    Full(Tensor),
}

impl Clone for Delta {
    fn clone(&self) -> Self {
        let Ok(same) = self.map(|t| Ok::<_, Infallible>(t.shallow_clone()));
        same
    }
}

impl Delta {
    /// Checks that the factors are matrices of matching sizes.
    pub(super) fn checked(self) -> Result<Self> {
        match &self {
            Self::LowRank { down, up } => check_chain(up, down)?,
            Self::Kronecker { first, second } => {
                check_product(first)?;
                check_product(second)?;
            }
            Self::Hadamard { a, b } => {
                a.iter().zip(b).try_for_each(|(a, b)| check_chain(a, b))?;
                if side(&a[0], 0) != side(&a[1], 0) || side(&b[0], 1) != side(&b[1], 1) {
                    return Err(wrong(&a[1], "[rows of the first product, rank]"));
                }
            }
            Self::Full(matrix) => check_matrix(matrix)?,
        }
        Ok(self)
    }

    /// Applies `f` to every tensor.
    pub(super) fn map<E>(&self, f: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok(match self {
            Self::LowRank { down, up } => Self::LowRank {
                down: f(down)?,
                up: f(up)?,
            },
            Self::Kronecker { first, second } => Self::Kronecker {
                first: first.iter().map(&f).collect::<Result<_, E>>()?,
                second: second.iter().map(f).collect::<Result<_, E>>()?,
            },
            Self::Hadamard { a, b } => Self::Hadamard {
                a: [f(&a[0])?, f(&a[1])?],
                b: [f(&b[0])?, f(&b[1])?],
            },
            Self::Full(matrix) => Self::Full(f(matrix)?),
        })
    }

    /// Moves the factors to `device`. The first factor of a Kronecker product, which is small, is multiplied
    /// there once; not before, because only the layer's size bounds it.
    pub(super) fn to_device(&self, device: Device) -> Result<Self> {
        Ok(match self.map(|t| t.f_to_device(device))? {
            Self::Kronecker { first, second } => Self::Kronecker {
                first: vec![product(&first)?],
                second,
            },
            other => other,
        })
    }

    pub(super) fn rows(&self) -> i64 {
        match self {
            Self::LowRank { up, .. } => side(up, 0),
            Self::Kronecker { first, second } => rows(first).saturating_mul(rows(second)),
            Self::Hadamard { a, .. } => side(&a[0], 0),
            Self::Full(matrix) => side(matrix, 0),
        }
    }

    pub(super) fn input(&self) -> i64 {
        match self {
            Self::LowRank { down, .. } => side(down, 1),
            Self::Kronecker { first, second } => columns(first).saturating_mul(columns(second)),
            Self::Hadamard { b, .. } => side(&b[0], 1),
            Self::Full(matrix) => side(matrix, 1),
        }
    }

    /// Returns the rank of its smallest product; `None` for a full matrix.
    pub(super) fn rank(&self) -> Option<i64> {
        match self {
            Self::LowRank { down, .. } => Some(side(down, 0)),
            Self::Kronecker { second, .. } => second.get(1).map(|t| side(t, 0)),
            Self::Hadamard { b, .. } => Some(side(&b[0], 0)),
            Self::Full(_) => None,
        }
    }

    /// Returns `true` if a backward pass has to reach a factor.
    pub(super) fn requires_grad(&self) -> bool {
        match self {
            Self::LowRank { down, up } => down.requires_grad() || up.requires_grad(),
            Self::Kronecker { first, second } => first.iter().chain(second).any(Tensor::requires_grad),
            Self::Hadamard { a, b } => a.iter().chain(b).any(Tensor::requires_grad),
            Self::Full(matrix) => matrix.requires_grad(),
        }
    }

    /// Returns `true` if the matrix is zero because a factor is.
    pub(super) fn is_zero(&self) -> Result<bool> {
        let zero = |t: &Tensor| -> Result<bool> { Ok(t.f_count_nonzero(None)?.f_int64_value(&[])? == 0) };
        let any = |all: &[&Tensor]| all.iter().try_fold(false, |any, t| Ok(any || zero(t)?));
        match self {
            Self::LowRank { down, up } => any(&[up, down]),
            Self::Kronecker { first, second } => any(&first.iter().chain(second).collect::<Vec<_>>()),
            Self::Hadamard { a, b } => any(&[&a[0], &a[1], &b[0], &b[1]]),
            Self::Full(matrix) => zero(matrix),
        }
    }

    /// Computes the matrix [rows, in] in f32.
    pub(super) fn matrix(&self) -> Result<Tensor> {
        Ok(match &self.map(|t| t.f_to_kind(Kind::Float))? {
            Self::LowRank { down, up } => up.f_matmul(down)?,
            Self::Kronecker { first, second } => product(first)?.f_kron(&product(second)?)?.f_contiguous()?,
            Self::Hadamard { a, b } => a[0].f_matmul(&b[0])?.f_mul(&a[1].f_matmul(&b[1])?)?,
            Self::Full(matrix) => matrix.shallow_clone(),
        })
    }

    /// Computes `scale` times some rows of the matrix times `x`, which holds the input features `columns`:
    /// [.., in] to [.., rows], in the dtype of `x`. The scale is applied to the smallest intermediate tensor.
    pub(super) fn apply(&self, x: &Tensor, scale: f64, rows: &Range<i64>, columns: &Range<i64>) -> Result<Tensor> {
        let kind = x.kind();
        let cut = |t: &Tensor, side: i64, range: &Range<i64>| -> Result<Tensor> {
            Ok(t.f_narrow(side, range.start, range.end - range.start)?
                .f_to_kind(kind)?)
        };
        let linear = |x: &Tensor, matrix: &Tensor| -> Result<Tensor> { Ok(x.f_linear(matrix, None::<&Tensor>)?) };
        match self {
            Self::LowRank { down, up } => {
                let low = linear(x, &cut(down, 1, columns)?)?.f_mul_scalar(scale)?;
                linear(&low, &cut(up, 0, rows)?)
            }
            Self::Full(matrix) => linear(x, &cut(&cut(matrix, 0, rows)?, 1, columns)?.f_mul_scalar(scale)?),
            Self::Hadamard { a, b } => {
                let part =
                    |i: usize| -> Result<Tensor> { Ok(cut(&a[i], 0, rows)?.f_matmul(&cut(&b[i], 1, columns)?)?) };
                linear(x, &part(0)?.f_mul(&part(1)?)?.f_mul_scalar(scale)?)
            }
            Self::Kronecker { first, second } => {
                // Whole blocks around the range.
                let blocks = |range: &Range<i64>, size: i64| range.start / size..(range.end + size - 1) / size;
                let (height, width) = (self::rows(second), self::columns(second));
                let (down, across) = (blocks(rows, height), blocks(columns, width));
                let pad = [columns.start - across.start * width, across.end * width - columns.end];
                let x = if pad == [0, 0] {
                    x.shallow_clone()
                } else {
                    x.f_constant_pad_nd(pad)?
                };
                // `(W1 ⊗ W2) x`, with x as a matrix of blocks, is `W1 X W2^T`.
                let mut y = x.f_unflatten(-1, [across.end - across.start, width])?;
                for factor in second.iter().rev() {
                    y = linear(&y, &factor.f_to_kind(kind)?)?;
                }
                let first = cut(&cut(&product(first)?, 0, &down)?, 1, &across)?.f_mul_scalar(scale)?;
                let y = linear(&y.f_transpose(-1, -2)?, &first)?
                    .f_transpose(-1, -2)?
                    .f_flatten(-2, -1)?;
                Ok(y.f_narrow(-1, rows.start - down.start * height, rows.end - rows.start)?)
            }
        }
    }

    /// Returns the matrix with the halves of its rows swapped.
    pub(super) fn swapped(&self) -> Result<Self> {
        Ok(match self {
            Self::LowRank { down, up } => Self::LowRank {
                down: down.shallow_clone(),
                up: swap_halves(up)?,
            },
            Self::Hadamard { a, b } => Self::Hadamard {
                a: [swap_halves(&a[0])?, swap_halves(&a[1])?],
                b: [b[0].shallow_clone(), b[1].shallow_clone()],
            },
            Self::Kronecker { first, second } if rows(first) % 2 == 0 => Self::Kronecker {
                first: vec![swap_halves(&product(first)?)?],
                second: second.iter().map(Tensor::shallow_clone).collect(),
            },
            Self::Kronecker { .. } | Self::Full(_) => Self::Full(swap_halves(&self.matrix()?)?),
        })
    }
}

/// Returns the rows of a product of matrices.
fn rows(factors: &[Tensor]) -> i64 {
    factors.first().map_or(1, |t| side(t, 0))
}

/// Returns the columns of a product of matrices.
fn columns(factors: &[Tensor]) -> i64 {
    factors.last().map_or(1, |t| side(t, 1))
}

/// Computes the product of one or two matrices.
fn product(factors: &[Tensor]) -> Result<Tensor> {
    check_product(factors)?;
    let (first, rest) = factors.split_first().ok_or_else(no_factors)?;
    rest.iter()
        .try_fold(first.shallow_clone(), |product, factor| Ok(product.f_matmul(factor)?))
}

fn side(t: &Tensor, index: usize) -> i64 {
    t.size().get(index).copied().unwrap_or_default()
}

fn check_matrix(t: &Tensor) -> Result<()> {
    match t.size().as_slice() {
        [rows, input] if *rows > 0 && *input > 0 => Ok(()),
        _ => Err(wrong(t, "[rows, in]")),
    }
}

/// Checks that two matrices can be multiplied.
fn check_chain(left: &Tensor, right: &Tensor) -> Result<()> {
    check_matrix(right)?;
    match left.size().as_slice() {
        [rows, rank] if *rows > 0 && *rank == side(right, 0) => Ok(()),
        _ => Err(wrong(left, "[rows, rank of the other factor]")),
    }
}

fn check_product(factors: &[Tensor]) -> Result<()> {
    match factors {
        [] => Err(no_factors()),
        [one] => check_matrix(one),
        more => more.windows(2).try_for_each(|pair| check_chain(&pair[0], &pair[1])),
    }
}

fn no_factors() -> Error {
    Error::invalid("factors of a Kronecker product", "one or two", 0)
}

fn wrong(got: &Tensor, expected: &'static str) -> Error {
    Error::Shape {
        tensor: "factor of an adapter",
        expected,
        got: got.size(),
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::noise;

    use super::*;

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
    }

    /// Returns one of each form, all [12, 10].
    fn all() -> Vec<Delta> {
        let kronecker = |second| Delta::Kronecker {
            first: vec![draw(&[3, 2], 3)],
            second,
        };
        let all = vec![
            Delta::LowRank {
                down: draw(&[2, 10], 1),
                up: draw(&[12, 2], 2),
            },
            kronecker(vec![draw(&[4, 5], 4)]),
            kronecker(vec![draw(&[4, 2], 5), draw(&[2, 5], 6)]),
            Delta::Kronecker {
                first: vec![draw(&[3, 1], 3), draw(&[1, 2], 4)],
                second: vec![draw(&[4, 5], 5)],
            },
            Delta::Hadamard {
                a: [draw(&[12, 2], 7), draw(&[12, 3], 8)],
                b: [draw(&[2, 10], 9), draw(&[3, 10], 10)],
            },
            Delta::Full(draw(&[12, 10], 11)),
        ];
        all.into_iter().map(|delta| delta.checked().unwrap()).collect()
    }

    #[test]
    fn a_part_of_the_product_is_the_product_with_that_part_of_the_matrix() {
        let x = draw(&[2, 3, 10], 12);
        for delta in all() {
            assert_eq!((delta.rows(), delta.input()), (12, 10));
            for (rows, columns) in [(0..12, 0..10), (3..11, 0..10), (0..12, 3..9), (5..6, 4..10)] {
                let matrix = delta.matrix().unwrap();
                let part = matrix.narrow(0, rows.start, rows.end - rows.start);
                let part = part.narrow(1, columns.start, columns.end - columns.start);
                let x = x.narrow(-1, columns.start, columns.end - columns.start);
                let got = delta.apply(&x, 0.5, &rows, &columns).unwrap();
                assert!(
                    got.allclose(&(x.linear(&part, None::<&Tensor>) * 0.5), 1e-4, 1e-5, false),
                    "{delta:?} {rows:?}"
                );
            }
        }
    }

    #[test]
    fn swapping_exchanges_the_halves_of_the_matrix() {
        for delta in all() {
            let expected = swap_halves(&delta.matrix().unwrap()).unwrap();
            assert!(
                delta
                    .swapped()
                    .unwrap()
                    .matrix()
                    .unwrap()
                    .allclose(&expected, 1e-6, 1e-6, false)
            );
        }
    }

    #[test]
    fn a_zero_factor_makes_a_zero_matrix() {
        for delta in all() {
            assert!(!delta.is_zero().unwrap());
            assert!(delta.map(Tensor::f_zeros_like).unwrap().is_zero().unwrap());
        }
    }

    #[test]
    fn a_kronecker_product_is_not_multiplied_before_its_layer_is_known() {
        // The first factor's product would have 10^14 elements.
        let long = |shape: &[i64]| draw(&[1, 1], 1).expand(shape, false);
        let delta = Delta::Kronecker {
            first: vec![long(&[10_000_000, 1]), long(&[1, 10_000_000])],
            second: vec![draw(&[2, 3], 2)],
        };
        let delta = delta.checked().unwrap();
        assert_eq!((delta.rows(), delta.input()), (20_000_000, 30_000_000));
    }

    #[test]
    fn factors_that_do_not_fit_are_refused() {
        let error = Delta::LowRank {
            down: draw(&[2, 10], 1),
            up: draw(&[12, 3], 2),
        }
        .checked()
        .unwrap_err();
        assert!(error.to_string().contains("rank of the other factor"), "{error}");
    }
}
