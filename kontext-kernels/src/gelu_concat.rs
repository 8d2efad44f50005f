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
        let mlp = self.read("mlp", "[B, T, mlp_width]", mlp, self.shape().mlp_width())?;
        let Some(tensor) = attention else {
            return self.quantise_rows(None, Some(&mlp), [mlp.batch, mlp.rows]);
        };
        let attention = self.read_attention(tensor)?;
        if (attention.batch, attention.rows) != (mlp.batch, mlp.rows) {
            return Err(Error::Shape {
                tensor: "attention",
                expected: "[B, T, width] with the B and T of mlp",
                got: tensor.size(),
            });
        }
        self.quantise_rows(Some(&attention), Some(&mlp), [mlp.batch, mlp.rows])
    }

    /// Returns `attention`, bf16 [B, T, width], as [`Self::gelu_concat_fp8`] does, without an MLP after it.
    ///
    /// # Errors
    /// Those of [`Self::gelu_concat_fp8`].
    pub fn attention_fp8(&self, attention: &Tensor) -> Result<(Tensor, Tensor)> {
        let rows = self.read_attention(attention)?;
        self.quantise_rows(Some(&rows), None, [rows.batch, rows.rows])
    }

    fn read_attention(&self, attention: &Tensor) -> Result<Rows> {
        self.read("attention", "[B, T, width]", attention, self.shape().width())
    }

    fn read(&self, tensor: &'static str, expected: &'static str, value: &Tensor, width: i64) -> Result<Rows> {
        let rows = Rows::of(tensor, expected, value, self.device(), false)?;
        let got = value.size();
        (rows.width == width)
            .then_some(rows)
            .ok_or(Error::Shape { tensor, expected, got })
    }

    /// Launches the kernel for checked inputs, of which there is at least one.
    fn quantise_rows(
        &self,
        attention: Option<&Rows>,
        mlp: Option<&Rows>,
        [batch, rows]: [i64; 2],
    ) -> Result<(Tensor, Tensor)> {
        let (device, shape) = (self.device(), *self.shape());
        let inputs = || attention.into_iter().chain(mlp);
        let width: i64 = inputs().map(|rows| rows.width).sum();
        let out = Tensor::f_empty([batch, rows, width], (Kind::Float8e4m3fn, device))?;
        let factors = Tensor::f_empty([batch, rows, 1], (Kind::Float, device))?;
        let Some(grid) = inputs().find(|rows| !rows.is_empty()).map(Rows::grid) else {
            return Ok((out, factors));
        };
        let mut buffers = vec![whole(&out, Access::Write), whole(&factors, Access::Write)];
        buffers.extend(inputs().map(|rows| rows.buffer(rows.width, Access::Read)));
        let (mut attention, mut mlp) = (RowsArgument::of(attention), RowsArgument::of(mlp));
        let (mut out_data, mut factors_data) = (out.data_ptr(), factors.data_ptr());
        // As in the kernel: with one input, the block is no smaller.
        let vectors = (shape.width() + shape.mlp_width()) / KernelShape::VECTOR;
        self.launch(
            Kernel::GeluConcatFp8,
            grid,
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
