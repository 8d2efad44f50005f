//! Kernels of libtorch that tch does not bind, because they return symbolic sizes.

use std::sync::OnceLock;

use kontext_core::{Error, Result};
use kontext_device::dispatcher::{Argument, Operator, Output};
use tch::Tensor;

/// Schemas of libtorch 2.11.
const CUDNN: &str = "aten::_scaled_dot_product_cudnn_attention(Tensor query, Tensor key, Tensor value, Tensor? attn_bias, \
     bool compute_log_sumexp, float dropout_p=0.0, bool is_causal=False, bool return_debug_mask=False, *, float? \
     scale=None) -> (Tensor output, Tensor logsumexp, Tensor cum_seq_q, Tensor cum_seq_k, SymInt max_q, SymInt max_k, \
     Tensor philox_seed, Tensor philox_offset, Tensor debug_attn_mask)";
const FLASH: &str = "aten::_scaled_dot_product_flash_attention(Tensor query, Tensor key, Tensor value, float dropout_p=0.0, \
     bool is_causal=False, bool return_debug_mask=False, *, float? scale=None) -> (Tensor output, Tensor logsumexp, \
     Tensor cum_seq_q, Tensor cum_seq_k, SymInt max_q, SymInt max_k, Tensor rng_state, Tensor unused, Tensor \
     debug_attn_mask)";

/// Computes cuDNN's attention on heads [B, H, T, D]; `grad` if a gradient is wanted.
pub(super) fn cudnn(q: &Tensor, k: &Tensor, v: &Tensor, grad: bool) -> Result<Tensor> {
    static OPERATOR: OnceLock<Result<Operator>> = OnceLock::new();
    let arguments = [
        ("query", Argument::Tensor(q)),
        ("key", Argument::Tensor(k)),
        ("value", Argument::Tensor(v)),
        ("attn_bias", Argument::None),
        ("compute_log_sumexp", Argument::Bool(grad)),
    ];
    first(operator(&OPERATOR, CUDNN)?.call(&arguments)?)
}

/// Computes FlashAttention-2 on heads [B, H, T, D] of a CUDA device.
pub(super) fn flash(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    static OPERATOR: OnceLock<Result<Operator>> = OnceLock::new();
    let arguments = [
        ("query", Argument::Tensor(q)),
        ("key", Argument::Tensor(k)),
        ("value", Argument::Tensor(v)),
    ];
    first(operator(&OPERATOR, FLASH)?.call(&arguments)?)
}

#[allow(unsafe_code)]
fn operator(place: &'static OnceLock<Result<Operator>>, schema: &str) -> Result<&'static Operator> {
    // SAFETY: these are the operators' schemas in libtorch 2.11, the only version that tch 0.24 is for; a test compares
    // them with the library's file.
    let made = place.get_or_init(|| unsafe { Operator::new(schema) });
    made.as_ref().map_err(|error| Error::bug(error.to_string()))
}

/// Returns the first result, the output of attention.
pub(super) fn first(outputs: Vec<Output>) -> Result<Tensor> {
    match outputs.into_iter().next() {
        Some(Output::Tensor(tensor)) => Ok(tensor),
        _ => Err(Error::bug("attention without a result")),
    }
}

#[cfg(test)]
mod tests {
    use kontext_device::libtorch;

    use super::*;

    /// libtorch parses its schemas from texts of its file; without CUDA they are registered, too.
    #[test]
    fn the_schemas_are_those_of_libtorch() {
        let Some(file) = libtorch::loaded(libtorch::CPU_LIBRARY) else {
            println!("skipped: the file of libtorch is known on Linux only");
            return;
        };
        let bytes = std::fs::read(file).unwrap();
        let mut wanted = vec![CUDNN, FLASH];
        for text in bytes.split(|byte| *byte == 0) {
            wanted.retain(|schema| &schema.as_bytes()["aten::".len()..] != text);
        }
        assert!(wanted.is_empty(), "{wanted:?}");
    }
}
