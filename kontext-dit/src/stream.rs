//! One stream (text or image) of a double-stream block: its projections, norms and MLP.

use kontext_core::{Kind, Result, Tensor};
use kontext_nn::ops::attend_tokens;
use kontext_nn::{Linear, RmsNorm, Weights};

use crate::DitConfig;
use crate::rope::Rope;

/// Epsilon of the query and key norms.
const EPS: f64 = 1e-6;

/// RMS norms of queries and keys over the width of a head.
#[derive(Debug)]
pub(crate) struct QkNorm {
    query: RmsNorm,
    key: RmsNorm,
}

impl QkNorm {
    pub(crate) fn new(w: &Weights, head_dim: i64) -> Result<Self> {
        Ok(Self {
            query: RmsNorm::new(&w.at("query_norm"), "scale", head_dim, EPS)?,
            key: RmsNorm::new(&w.at("key_norm"), "scale", head_dim, EPS)?,
        })
    }

    /// Norms and rotates queries: [B, L, H, D] to the same shape.
    pub(crate) fn query(&self, q: &Tensor, rope: &Rope) -> Result<Tensor> {
        rope.rotate(&self.query.forward(q)?)
    }

    /// Norms and rotates keys: [B, L, H, D] to the same shape.
    pub(crate) fn key(&self, k: &Tensor, rope: &Rope) -> Result<Tensor> {
        rope.rotate(&self.key.forward(k)?)
    }
}

/// Queries, keys and values of a segment of the sequence, each [B, L, H, D].
#[derive(Debug)]
pub(crate) struct Qkv {
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
}

impl Qkv {
    /// Appends another segment.
    pub(crate) fn join(&self, next: &Self) -> Result<Self> {
        let join = |a: &Tensor, b: &Tensor| -> Result<Tensor> { Ok(Tensor::f_cat(&[a, b], 1)?) };
        Ok(Self {
            q: join(&self.q, &next.q)?,
            k: join(&self.k, &next.k)?,
            v: join(&self.v, &next.v)?,
        })
    }

    /// Computes attention within the sequence: [B, L, H * D].
    pub(crate) fn attend(&self) -> Result<Tensor> {
        attend_tokens(&self.q, &self.k, &self.v)
    }
}

/// Weights of one stream.
#[derive(Debug)]
pub(crate) struct Stream {
    qkv: Linear,
    norm: QkNorm,
    proj: Linear,
    mlp_in: Linear,
    mlp_out: Linear,
    heads: i64,
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
            heads: config.heads,
        })
    }

    /// Computes queries, keys and values of the modulated `x` [B, L, D].
    pub(crate) fn qkv(&self, x: &Tensor, rope: &Rope) -> Result<Qkv> {
        let qkv = self.qkv.forward(x)?.f_unflatten(-1, [3, self.heads, -1])?; // [B, L, 3, H, D/H]
        let part = |index: i64| qkv.f_select(2, index);
        Ok(Qkv {
            q: self.norm.query(&part(0)?, rope)?,
            k: self.norm.key(&part(1)?, rope)?,
            v: part(2)?,
        })
    }

    /// Applies the output projection of the attention.
    pub(crate) fn proj(&self, x: &Tensor) -> Result<Tensor> {
        self.proj.forward(x)
    }

    /// Applies the MLP to the modulated `x` [B, L, D].
    pub(crate) fn mlp(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp_out.forward(&gelu(self.mlp_in.forward(x)?)?)
    }
}

/// Computes GELU in its tanh approximation, in place if no gradient is required: the MLP's activations are
/// the largest of the model.
pub(crate) fn gelu(mut x: Tensor) -> Result<Tensor> {
    Ok(if x.requires_grad() {
        x.f_gelu("tanh")?
    } else {
        x.f_gelu_("tanh")?
    })
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
