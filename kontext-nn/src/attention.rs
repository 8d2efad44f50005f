//! Scaled dot-product attention, and the layouts of its heads.
//!
//! All models except T5 compute their attention here. T5 writes its attention out: its unscaled scores need the
//! reference's order of operations. The transformer's is [`attend_tokens`], whose kernel can be chosen.

mod backend;
mod choice;
mod flash3;
mod fp8;
mod operators;

use tch::Tensor;

use kontext_core::Result;

pub use self::backend::AttentionBackend;
pub use self::choice::{Attention, AttentionKernel};

/// Computes scaled dot-product attention on heads, `softmax(q k^T * scale + bias) v`.
///
/// # Shapes
/// `q` [B, H, L, D], `k` and `v` [B, H, S, D], `bias` broadcastable to [B, H, L, S]; returns
/// [B, L, H * D]. `scale` defaults to 1 / sqrt(D).
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn attend(q: &Tensor, k: &Tensor, v: &Tensor, bias: Option<&Tensor>, scale: Option<f64>) -> Result<Tensor> {
    #[cfg(target_arch = "x86_64")]
    if bias.is_none()
        && let Some(out) = crate::bf16_attention::attend(q, k, v, scale)?
    {
        return Ok(out);
    }
    let heads = Tensor::f_scaled_dot_product_attention(q, k, v, bias, 0.0, false, scale, false)?;
    merge_heads(&heads)
}

/// Computes [`attend`], without bias and with the default scale, on heads in the order of a projection's
/// output, by the kernel whose [scope](AttentionBackend::scope) this thread is in, else by libtorch's choice. All kernels
/// but the one of [`Attention::Math`] write their result in the order of `q`, so merging its heads copies nothing.
///
/// # Shapes
/// `q` [B, L, H, D], `k` and `v` [B, S, H, D]; returns [B, L, H * D].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn attend_tokens(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    if let Some(out) = backend::in_scope(q, k, v)? {
        return Ok(out);
    }
    let heads = |x: &Tensor| x.f_transpose(-3, -2);
    attend(&heads(q)?, &heads(k)?, &heads(v)?, None, None)
}

/// Splits the heads: [B, L, H * D] to [B, H, L, D].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if the last size is not a multiple of `heads`.
pub fn split_heads(x: &Tensor, heads: i64) -> Result<Tensor> {
    Ok(x.f_unflatten(-1, [heads, -1])?.f_transpose(-3, -2)?)
}

/// Merges the heads: [B, H, L, D] to [B, L, H * D].
///
/// # Errors
/// [`kontext_core::Error::Torch`] if libtorch fails.
pub fn merge_heads(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_transpose(-3, -2)?.f_flatten(-2, -1)?)
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};
    use tch::Kind;

    use super::*;

    #[test]
    fn heads_split_and_merge_back() {
        let x = noise::randn(&[2, 5, 12], 0, Kind::Float, Device::Cpu).unwrap();
        let heads = split_heads(&x, 3).unwrap();
        assert_eq!(heads.size(), [2, 3, 5, 4]);
        assert!(merge_heads(&heads).unwrap().equal(&x));
    }

    #[test]
    fn attention_over_one_key_returns_its_value() {
        let q = noise::randn(&[1, 2, 3, 4], 0, Kind::Float, Device::Cpu).unwrap();
        let kv = noise::randn(&[1, 2, 1, 4], 1, Kind::Float, Device::Cpu).unwrap();
        let out = attend(&q, &kv, &kv, None, None).unwrap();
        assert!(out.allclose(&merge_heads(&kv).unwrap().expand([1, 3, 8], false), 1e-6, 1e-6, false));
    }

    #[test]
    fn attention_by_token_is_attention_on_heads_split_from_the_tokens() {
        let draw = |length: i64, seed| noise::randn(&[2, length, 12], seed, Kind::Float, Device::Cpu).unwrap();
        let (q, k, v) = (draw(3, 0), draw(5, 1), draw(5, 2));
        let by_token = |x: &Tensor| x.unflatten(-1, [3, -1]);
        let heads = |x: &Tensor| split_heads(x, 3).unwrap();
        let expected = attend(&heads(&q), &heads(&k), &heads(&v), None, None).unwrap();
        assert!(
            attend_tokens(&by_token(&q), &by_token(&k), &by_token(&v))
                .unwrap()
                .equal(&expected)
        );
    }
}
