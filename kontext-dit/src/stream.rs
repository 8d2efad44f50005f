//! One stream (text or image) of a double-stream block: its projections, norms and MLP.

use std::ops::Range;

use kontext_core::{Kind, Result, Tensor};
use kontext_kernels::Kernels;
use kontext_nn::{Linear, Weights, ops};

use crate::qk_norm::QkNorm;
use crate::rows::{Rows, takes_fp8};
use crate::{Arithmetic, DitConfig};

/// Weights of one stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) qkv: Linear,
    pub(crate) norm: QkNorm,
    proj: Linear,
    mlp_in: Linear,
    mlp_out: Linear,
    pub(crate) width: i64,
    mlp_width: i64,
}

impl Stream {
    /// Reads the weights `{name}_attn` and `{name}_mlp`; `name` is "img" or "txt".
    pub(crate) fn new(w: &Weights, name: &str, config: &DitConfig) -> Result<Self> {
        let width = config.width();
        let (attn, mlp) = (w.at(format!("{name}_attn")), w.at(format!("{name}_mlp")));
        Ok(Self {
            qkv: Linear::new(&attn.at("qkv"), width, 3 * width)?,
            norm: QkNorm::new(&attn.at("norm"), config.head_dim)?,
            proj: Linear::new(&attn.at("proj"), width, width)?,
            mlp_in: Linear::new(&mlp.at("0"), width, config.mlp_width)?,
            mlp_out: Linear::new(&mlp.at("2"), config.mlp_width, width)?,
            width,
            mlp_width: config.mlp_width,
        })
    }

    /// Applies the output projection of the attention.
    pub(crate) fn proj(&self, x: &Tensor) -> Result<Tensor> {
        self.proj.forward(x)
    }

    /// Writes the output projection of the attention to rows of a sequence.
    pub(crate) fn proj_to(&self, x: &Rows, out: &Tensor) -> Result<()> {
        x.project_to(&self.proj, 0..self.width, out)
    }

    /// Returns `true` if the output projection takes an attention that kernels round to fp8.
    pub(crate) fn proj_takes_fp8(&self, kernels: &Kernels) -> bool {
        takes_fp8(kernels, &self.proj, self.width)
    }

    /// Returns `true` if the MLP takes a norm that kernels write in fp8.
    pub(crate) fn mlp_takes_fp8(&self, kernels: &Kernels) -> bool {
        takes_fp8(kernels, &self.mlp_in, self.mlp_width)
    }

    /// Writes the MLP of the modulated `x` [B, L, D] to rows of a sequence.
    pub(crate) fn mlp_to(&self, kernels: &Kernels, x: &Rows, out: &Tensor) -> Result<()> {
        if takes_fp8(kernels, &self.mlp_out, self.width) {
            let hidden = x.project(&self.mlp_in, 0..self.mlp_width)?;
            let hidden = Rows::fp8(kernels.gelu_concat_fp8(None, &hidden)?)?;
            return hidden.project_to(&self.mlp_out, 0..self.width, out);
        }
        let hidden = x.gelu(&self.mlp_in, 0..self.mlp_width)?;
        self.mlp_out.forward_to(&hidden, 0..self.width, out)
    }

    /// Returns `true` if a weight or an active adapter requires a gradient.
    pub(crate) fn is_trained(&self) -> bool {
        let layers = [&self.qkv, &self.proj, &self.mlp_in, &self.mlp_out];
        self.norm.is_trained() || layers.into_iter().any(Linear::is_trained)
    }

    /// Applies the MLP to the modulated `x` [B, L, D].
    pub(crate) fn mlp(&self, x: &Tensor, arithmetic: Arithmetic) -> Result<Tensor> {
        self.mlp_out
            .forward(&gelu(&self.mlp_in, x, 0..self.mlp_width, arithmetic)?)
    }
}

/// Computes GELU, in its tanh approximation, of some output features of a layer.
pub(crate) fn gelu(layer: &Linear, x: &Tensor, features: Range<i64>, arithmetic: Arithmetic) -> Result<Tensor> {
    match arithmetic {
        Arithmetic::Fewest => layer.forward_gelu(x, features),
        Arithmetic::Diffusers | Arithmetic::Bfl => {
            ops::gelu_tanh(layer.forward_rows(x, features.start, features.end - features.start)?)
        }
    }
}

/// Clamps f16 values to the finite range, as diffusers does after text streams and single blocks, in which
/// activations of the published weights exceed 65504.
pub(crate) fn clamp_half(x: Tensor) -> Result<Tensor> {
    const LARGEST: f64 = 65_504.0;
    if x.kind() == Kind::Half {
        Ok(x.f_clip(-LARGEST, LARGEST)?)
    } else {
        Ok(x)
    }
}
