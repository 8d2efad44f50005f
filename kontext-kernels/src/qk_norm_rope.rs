//! Norm and rotation of queries and keys.

use std::ffi::c_void;

use kontext_core::{Error, Result, Tensor};

use crate::checks::{Rows, dense};
use crate::kernels::{argument, whole_warps};
use crate::{Access, Kernel, KernelShape, Kernels};

/// Weights of the RMS norms of queries and keys, each f32 `[head_dim]`.
#[derive(Debug, Clone, Copy)]
pub struct QkWeights<'a> {
    /// Of the text's queries.
    pub text_q: &'a Tensor,
    /// Of the text's keys.
    pub text_k: &'a Tensor,
    /// Of the image's queries.
    pub image_q: &'a Tensor,
    /// Of the image's keys.
    pub image_k: &'a Tensor,
}

/// `QkWeights` of the kernel.
#[repr(C)]
struct Pointers([*const c_void; 4]);

impl Kernels {
    /// Norms and rotates queries and keys in place, for both streams at once: `x / sqrt(mean(x²) + eps) *
    /// weight` over each head, then the rotation of neighbouring pairs of features, in f32, rounded once.
    ///
    /// `qkv` [B, T, row] is bf16; a row is q, k, v, each `heads * head_dim` wide, and anything after them.
    /// Its first `text` tokens take the text's weights; with zero, or with T, one stream has all. `rope` is
    /// f32 [T, head_dim]: cosine and sine of each pair in turns.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::InvalidArgument`] for tensors that do not fit, [`Error::Device`] if the
    /// launch fails.
    pub fn qk_norm_rope(
        &self,
        qkv: &Tensor,
        weights: &QkWeights<'_>,
        rope: &Tensor,
        heads: i64,
        text: i64,
        eps: f64,
    ) -> Result<()> {
        let (device, head_dim) = (self.device(), self.shape().head_dim());
        let most = self.shape().width() / head_dim;
        if !(1..=most).contains(&heads) {
            return Err(Error::invalid("heads", format!("1 to {most}"), heads));
        }
        let rows = Rows::of("qkv", "[B, T, 3 * heads * head_dim or more]", qkv, device, true)?;
        if rows.width < 3 * heads * head_dim {
            return Err(Error::Shape {
                tensor: "qkv",
                expected: "[B, T, 3 * heads * head_dim or more]",
                got: qkv.size(),
            });
        }
        let mut text = text_rows(text, &rows)?;
        let weight = |name, tensor| dense(name, "[head_dim]", tensor, &[head_dim], device);
        let vectors = [
            weight("text_q", weights.text_q)?,
            weight("text_k", weights.text_k)?,
            weight("image_q", weights.image_q)?,
            weight("image_k", weights.image_k)?,
        ];
        let (mut angles, angles_memory) = dense("rope", "[T, head_dim]", rope, &[rows.rows, head_dim], device)?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut buffers = vec![rows.buffer(2 * heads * head_dim, Access::Update), angles_memory];
        buffers.extend(vectors.map(|(_, memory)| memory));
        let mut pointers = Pointers(vectors.map(|(address, _)| address));
        let (mut data, mut batch, mut row) = (rows.data, rows.batch_stride, rows.row_stride);
        let (mut heads, mut eps) = (heads as i32, eps as f32);
        self.launch(
            Kernel::QkNormRope,
            rows.grid(),
            whole_warps(self.shape().width() / KernelShape::VECTOR),
            &mut [
                argument(&mut data),
                argument(&mut batch),
                argument(&mut row),
                argument(&mut pointers),
                argument(&mut angles),
                argument(&mut heads),
                argument(&mut text),
                argument(&mut eps),
            ],
            &buffers,
        )
    }
}

/// Checks the number of text rows, which come first.
pub(crate) fn text_rows(text: i64, rows: &Rows) -> Result<i32> {
    match i32::try_from(text) {
        Ok(count) if (0..=rows.rows).contains(&text) => Ok(count),
        _ => Err(Error::invalid("text", format!("0 to {} rows", rows.rows), text)),
    }
}
