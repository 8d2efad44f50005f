//! The names of T5 in GGUF files.
//!
//! Source: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py`, architecture `t5encoder`.

use kontext_core::Weights;

/// A tensor that only T5 has in such a file.
pub(super) const SIGN: &str = "enc.blk.0.attn_q.weight";

/// The same weights by transformers' names, if they have llama.cpp's.
pub(super) fn renamed(weights: Weights) -> Weights {
    if weights.shape_of(SIGN).is_some() { weights.renamed(transformers) } else { weights }
}

/// llama.cpp's name to transformers'; others stay as they are.
fn transformers(name: &str) -> Option<String> {
    const PARTS: [(&str, &str); 10] = [
        ("attn_q", "0.SelfAttention.q"),
        ("attn_k", "0.SelfAttention.k"),
        ("attn_v", "0.SelfAttention.v"),
        ("attn_o", "0.SelfAttention.o"),
        ("attn_rel_b", "0.SelfAttention.relative_attention_bias"),
        ("attn_norm", "0.layer_norm"),
        ("ffn_gate", "1.DenseReluDense.wi_0"),
        ("ffn_up", "1.DenseReluDense.wi_1"),
        ("ffn_down", "1.DenseReluDense.wo"),
        ("ffn_norm", "1.layer_norm"),
    ];
    let block = || {
        let (index, part) = name.strip_prefix("enc.blk.")?.strip_suffix(".weight")?.split_once('.')?;
        let (_, ours) = PARTS.iter().find(|(theirs, _)| *theirs == part)?;
        Some(format!("encoder.block.{index}.layer.{ours}.weight"))
    };
    Some(match name {
        "token_embd.weight" => "shared.weight".to_owned(),
        "enc.output_norm.weight" => "encoder.final_layer_norm.weight".to_owned(),
        _ => block().unwrap_or_else(|| name.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_llama_cpp_become_those_of_transformers() {
        let of = |name: &str| transformers(name).unwrap();
        assert_eq!(of("enc.blk.11.ffn_down.weight"), "encoder.block.11.layer.1.DenseReluDense.wo.weight");
        assert_eq!(of("token_embd.weight"), "shared.weight");
        assert_eq!(of("enc.blk.0.unknown.weight"), "enc.blk.0.unknown.weight");
    }
}
