//! Residual and modulated layer norm.

use std::ffi::c_void;
use std::ptr;

use kontext_core::{Error, Kind, Result, Tensor};

use crate::checks::{Rows, vectors, whole};
use crate::kernels::{argument, whole_warps};
use crate::qk_norm_rope::text_rows;
use crate::{Access, Kernel, KernelShape, Kernels};

/// The output of a branch, to be added to the residual stream with a gate.
#[derive(Debug, Clone, Copy)]
pub struct Branch<'a> {
    /// The output, bf16 [B, T, D].
    pub y: &'a Tensor,
    /// Gate of the text's rows, bf16 [B or 1, D] or [B or 1, 1, D].
    pub text_gate: &'a Tensor,
    /// Gate of the image's rows, likewise.
    pub image_gate: &'a Tensor,
}

/// Modulation of a layer norm: `norm(x) * (1 + scale) + shift`. Each is bf16 [B or 1, D] or [B or 1, 1, D].
#[derive(Debug, Clone, Copy)]
pub struct NormModulation<'a> {
    /// Scale, to which the kernel adds one in f32.
    pub scale: &'a Tensor,
    /// Shift.
    pub shift: &'a Tensor,
}

/// `Rows` of the kernel.
#[repr(C)]
pub(crate) struct RowsArgument {
    data: *const c_void,
    batch: i64,
    row: i64,
}

impl RowsArgument {
    pub(crate) fn of(rows: Option<&Rows>) -> Self {
        Self {
            data: rows.map_or(ptr::null(), |rows| rows.data.cast_const()),
            batch: rows.map_or(0, |rows| rows.batch_stride),
            row: rows.map_or(0, |rows| rows.row_stride),
        }
    }
}

/// `TwoVectors` of the kernel.
#[repr(C)]
struct TwoVectors {
    data: [*const c_void; 2],
    batch: [i64; 2],
}

impl Kernels {
    /// Adds `gate * y` to `x` in place, if there is a branch, and returns the modulated layer norm of `x`, a
    /// new bf16 [B, T, D]. `x` is bf16 [B, T, D]; sums are in f32, and the norm is of the rounded `x`.
    ///
    /// The first `text` rows take the text's gate, scale and shift, the others the image's; with zero, or
    /// with T, one stream has all, and the other's vectors are checked, but not read. Gate, scale and shift
    /// may come from different layers' modulation.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::InvalidArgument`] for tensors that do not fit, [`Error::Torch`] if the
    /// result cannot be allocated, [`Error::Device`] if the launch fails.
    pub fn residual_norm(
        &self,
        x: &Tensor,
        branch: Option<&Branch<'_>>,
        text_norm: &NormModulation<'_>,
        image_norm: &NormModulation<'_>,
        text: i64,
        eps: f64,
    ) -> Result<Tensor> {
        let out = Tensor::f_empty(x.size(), (Kind::BFloat16, self.device()))?;
        self.norm_into(x, branch, [text_norm, image_norm], text, eps, &out, None)?;
        Ok(out)
    }

    /// Does the same as [`Self::residual_norm`], but returns e4m3 [B, T, D] and the factors of the rows, f32
    /// [B, T, 1]: the largest magnitude of a row over 448, by which its values are to be multiplied.
    ///
    /// # Errors
    /// Those of [`Self::residual_norm`]; [`Error::Device`] also without [`Self::has_fp8`].
    pub fn residual_norm_fp8(
        &self,
        x: &Tensor,
        branch: Option<&Branch<'_>>,
        text_norm: &NormModulation<'_>,
        image_norm: &NormModulation<'_>,
        text: i64,
        eps: f64,
    ) -> Result<(Tensor, Tensor)> {
        let [batch, rows, _] = kontext_core::check::dims("x", x, "[B, T, D]")?;
        let out = Tensor::f_empty(x.size(), (Kind::Float8e4m3fn, self.device()))?;
        let factors = Tensor::f_empty([batch, rows, 1], (Kind::Float, self.device()))?;
        self.norm_into(x, branch, [text_norm, image_norm], text, eps, &out, Some(&factors))?;
        Ok((out, factors))
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "those of the two public functions, and their results"
    )]
    fn norm_into(
        &self,
        x: &Tensor,
        branch: Option<&Branch<'_>>,
        norms: [&NormModulation<'_>; 2],
        text: i64,
        eps: f64,
        out: &Tensor,
        factors: Option<&Tensor>,
    ) -> Result<()> {
        let (device, width) = (self.device(), self.shape().width());
        let rows = Rows::of("x", "[B, T, D]", x, device, branch.is_some())?;
        if rows.width != width {
            return Err(Error::Shape {
                tensor: "x",
                expected: "[B, T, D] with the D of the kernels",
                got: x.size(),
            });
        }
        let mut text = text_rows(text, &rows)?;
        let access = if branch.is_some() { Access::Update } else { Access::Read };
        let mut buffers = vec![rows.buffer(width, access), whole(out, Access::Write)];
        let mut pair = |names: [&'static str; 2], tensors: [&Tensor; 2]| -> Result<TwoVectors> {
            let (text_data, text_batch, text_memory) = vectors(names[0], tensors[0], &rows, device)?;
            let (image_data, image_batch, image_memory) = vectors(names[1], tensors[1], &rows, device)?;
            buffers.extend([text_memory, image_memory]);
            Ok(TwoVectors {
                data: [text_data, image_data],
                batch: [text_batch, image_batch],
            })
        };
        let mut scale = pair(["text scale", "image scale"], norms.map(|norm| norm.scale))?;
        let mut shift = pair(["text shift", "image shift"], norms.map(|norm| norm.shift))?;
        let mut gate = TwoVectors {
            data: [ptr::null(); 2],
            batch: [0; 2],
        };
        let mut y = None;
        if let Some(branch) = branch {
            gate = pair(["text gate", "image gate"], [branch.text_gate, branch.image_gate])?;
            let of_branch = Rows::of("y", "[B, T, D]", branch.y, device, false)?;
            if branch.y.size() != x.size() {
                return Err(Error::Shape {
                    tensor: "y",
                    expected: "[B, T, D] as x",
                    got: branch.y.size(),
                });
            }
            buffers.push(of_branch.buffer(width, Access::Read));
            y = Some(of_branch);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (mut x, mut y) = (RowsArgument::of(Some(&rows)), RowsArgument::of(y.as_ref()));
        let mut factors_data = factors.map_or(ptr::null_mut(), Tensor::data_ptr);
        let (mut out, mut eps) = (out.data_ptr(), eps as f32);
        let mut arguments = vec![
            argument(&mut x),
            argument(&mut y),
            argument(&mut gate),
            argument(&mut scale),
            argument(&mut shift),
            argument(&mut out),
        ];
        let mut kernel = Kernel::ResidualNorm;
        if let Some(factors) = factors {
            buffers.push(whole(factors, Access::Write));
            arguments.push(argument(&mut factors_data));
            kernel = Kernel::ResidualNormFp8;
        }
        arguments.extend([argument(&mut text), argument(&mut eps)]);
        let threads = whole_warps(width / KernelShape::VECTOR);
        self.launch(kernel, rows.grid(), threads, &mut arguments, &buffers)
    }
}
