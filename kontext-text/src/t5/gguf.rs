//! Tensor names of T5 in GGUF files.
//!
//! Source: ggml-org/llama.cpp `gguf-py/gguf/tensor_mapping.py`, architecture `t5encoder`.

use kontext_nn::Weights;

/// Name of a tensor that only T5 has in a GGUF file.
pub(super) const SIGN: &str = "enc.blk.0.attn_q.weight";

/// Renames weights from llama.cpp's names to transformers'; returns others unchanged.
pub(super) fn renamed(weights: Weights) -> Weights {
    if weights.shape_of(SIGN).is_some() {
        weights.renamed(transformers)
    } else {
        weights
    }
}

/// Layers of a block: llama.cpp's name, transformers' name.
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
/// Tensors outside the blocks: llama.cpp's name, transformers' name.
const OTHERS: [(&str, &str); 2] = [
    ("token_embd.weight", "shared.weight"),
    ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
];

/// Maps transformers' name of a T5 encoder tensor to its name in GGUF files; returns others unchanged.
#[must_use]
pub fn t5_gguf_name(name: &str) -> String {
    let block = || {
        let (index, part) = name
            .strip_prefix("encoder.block.")?
            .strip_suffix(".weight")?
            .split_once(".layer.")?;
        let (theirs, _) = PARTS.iter().find(|(_, ours)| *ours == part)?;
        Some(format!("enc.blk.{index}.{theirs}.weight"))
    };
    let other = OTHERS
        .iter()
        .find(|(_, ours)| *ours == name)
        .map(|(theirs, _)| (*theirs).to_owned());
    other.or_else(block).unwrap_or_else(|| name.to_owned())
}

/// Maps llama.cpp's name of a tensor to transformers'; returns others unchanged.
fn transformers(name: &str) -> Option<String> {
    let block = || {
        let (index, part) = name
            .strip_prefix("enc.blk.")?
            .strip_suffix(".weight")?
            .split_once('.')?;
        let (_, ours) = PARTS.iter().find(|(theirs, _)| *theirs == part)?;
        Some(format!("encoder.block.{index}.layer.{ours}.weight"))
    };
    let other = OTHERS
        .iter()
        .find(|(theirs, _)| *theirs == name)
        .map(|(_, ours)| (*ours).to_owned());
    other.or_else(block).or_else(|| Some(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_llama_cpp_become_those_of_transformers() {
        let renamed = |name: &str| transformers(name).unwrap();
        assert_eq!(
            renamed("enc.blk.11.ffn_down.weight"),
            "encoder.block.11.layer.1.DenseReluDense.wo.weight"
        );
        assert_eq!(renamed("token_embd.weight"), "shared.weight");
        assert_eq!(renamed("enc.blk.0.unknown.weight"), "enc.blk.0.unknown.weight");
        for name in [
            "enc.blk.11.attn_norm.weight",
            "token_embd.weight",
            "enc.output_norm.weight",
            "other",
        ] {
            assert_eq!(t5_gguf_name(&renamed(name)), name);
        }
    }
}
