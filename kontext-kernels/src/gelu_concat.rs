//! Attention and GELU of the MLP as one quantised row.

use kontext_core::{Error, Kind, Result, Tensor};

use crate::checks::{Rows, whole};
use crate::kernels::{argument, whole_warps};
use crate::residual_norm::RowsArgument;
use crate::{Access, Kernel, KernelShape, Kernels};

/// Most threads of a block.
const MOST_THREADS: i64 = 512;

impl Kernels {
    /// Applies GELU (tanh form) to `mlp` and returns it after `attention`, where there is one, as e4m3 [B, T,
    /// (width +) mlp_width] with a factor for each row, f32 [B, T, 1]: the largest magnitude of the row over
    /// 448, by which its values are to be multiplied.
    ///
    /// `attention` is bf16 [B, T, width], `mlp` bf16 [B, T, mlp_width]; their rows may be parts of longer
    /// ones.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::InvalidArgument`] for tensors that do not fit, [`Error::Torch`] if the
    /// results cannot be allocated, [`Error::Device`] if the launch fails, or without [`Kernels::has_fp8`].
    pub fn gelu_concat_fp8(&self, attention: Option<&Tensor>, mlp: &Tensor) -> Result<(Tensor, Tensor)> {
        let (device, shape) = (self.device(), *self.shape());
        let read = |tensor: &'static str, expected: &'static str, value: &Tensor, width: i64| -> Result<Rows> {
            let rows = Rows::of(tensor, expected, value, device, false)?;
            let got = value.size();
            (rows.width == width)
                .then_some(rows)
                .ok_or(Error::Shape { tensor, expected, got })
        };
        let mlp_rows = read("mlp", "[B, T, mlp_width]", mlp, shape.mlp_width())?;
        let attention = match attention {
            None => None,
            Some(attention) => {
                let rows = read("attention", "[B, T, width]", attention, shape.width())?;
                if (rows.batch, rows.rows) != (mlp_rows.batch, mlp_rows.rows) {
                    return Err(Error::Shape {
                        tensor: "attention",
                        expected: "[B, T, width] with the B and T of mlp",
                        got: attention.size(),
                    });
                }
                Some(rows)
            }
        };
        let before = attention.map_or(0, |rows| rows.width);
        let (batch, rows) = (mlp_rows.batch, mlp_rows.rows);
        let out = Tensor::f_empty([batch, rows, before + mlp_rows.width], (Kind::Float8e4m3fn, device))?;
        let factors = Tensor::f_empty([batch, rows, 1], (Kind::Float, device))?;
        if mlp_rows.is_empty() {
            return Ok((out, factors));
        }
        let mut buffers = vec![
            mlp_rows.buffer(mlp_rows.width, Access::Read),
            whole(&out, Access::Write),
            whole(&factors, Access::Write),
        ];
        buffers.extend(attention.map(|rows| rows.buffer(rows.width, Access::Read)));
        let mut attention = RowsArgument::of(attention.as_ref());
        let mut mlp = RowsArgument::of(Some(&mlp_rows));
        let (mut out_data, mut factors_data) = (out.data_ptr(), factors.data_ptr());
        // As in the kernel: without attention, the block is no smaller.
        let vectors = (shape.width() + shape.mlp_width()) / KernelShape::VECTOR;
        self.launch(
            Kernel::GeluConcatFp8,
            mlp_rows.grid(),
            whole_warps(vectors.min(MOST_THREADS)),
            &mut [
                argument(&mut attention),
                argument(&mut mlp),
                argument(&mut out_data),
                argument(&mut factors_data),
            ],
            &buffers,
        )?;
        Ok((out, factors))
    }
}
