//! Peak activations of the encoder, counted from the code in `layer.rs`.

use kontext_core::Kind;
use kontext_nn::footprint::element_bytes;

use super::T5Config;

/// Returns the dtype in which the weight of this name is held for a computation in `compute`: in f16, the
/// last layer of the feed-forward layers is f32.
pub(crate) fn held_kind(name: &str, compute: Kind) -> Kind {
    if compute == Kind::Half && name.ends_with("wo.weight") {
        Kind::Float
    } else {
        compute
    }
}

/// Returns `true` if this is a name of the embedding, as transformers or GGUF write it.
pub(crate) fn is_embedding(name: &str) -> bool {
    ["shared.weight", "encoder.embed_tokens.weight", "token_embd.weight"].contains(&name)
}

/// Returns the peak bytes of activations for one prompt of `tokens` tokens.
pub(crate) fn activations(config: &T5Config, tokens: u64, compute: Kind) -> u64 {
    let (element, wide) = (element_bytes(compute), element_bytes(Kind::Float));
    let (width, hidden) = (config.d_model.unsigned_abs(), config.d_ff.unsigned_abs());
    let scores = score_elements(config, tokens);
    // Attention holds the bias and the scores, before and after adding it or the softmax, which is f32; next to them at
    // most four tensors of queries, keys, values or results. In bf16 on a CPU it holds the bias in f32 and no scores.
    let attention =
        scores
            .saturating_mul(element + 2 * wide)
            .saturating_add(product(&[4 * element, tokens, inner_width(config)]));
    // The feed-forward layer holds both its halves and their product, which are f32 in an f16 run; the bias
    // stays.
    let feed_forward = scores
        .saturating_mul(element)
        .saturating_add(product(&[3 * wide, tokens, hidden]));
    // The residual before and after a sum, and its norm; the residual is f32 in an f16 run.
    attention
        .max(feed_forward)
        .saturating_add(product(&[3 * wide, tokens, width]))
}

/// Returns the elements of the bias, and of the scores.
fn score_elements(config: &T5Config, tokens: u64) -> u64 {
    product(&[config.num_heads.unsigned_abs(), tokens, tokens])
}

/// Returns the width of the queries, keys and values of all heads.
fn inner_width(config: &T5Config) -> u64 {
    product(&[config.num_heads.unsigned_abs(), config.d_kv.unsigned_abs()])
}

fn product(factors: &[u64]) -> u64 {
    factors.iter().fold(1, |all, factor| all.saturating_mul(*factor))
}

#[cfg(test)]
mod tests {
    use kontext_nn::Weights;

    use super::super::T5Encoder;
    use super::super::bias::RelativeBias;
    use super::*;

    fn tiny() -> T5Config {
        T5Config {
            vocab_size: 20,
            d_model: 16,
            d_kv: 6,
            d_ff: 40,
            num_layers: 1,
            num_heads: 3,
            ..T5Config::xxl()
        }
    }

    #[test]
    fn the_bias_and_the_queries_have_the_counted_sizes() {
        let config = tiny();
        let bias = RelativeBias::new(&Weights::synthetic(0), &config).unwrap();
        let bias = bias.forward(11, Kind::Float).unwrap();
        assert_eq!(score_elements(&config, 11), bias.numel() as u64);
        let blank = Weights::blank();
        T5Encoder::new(&blank, &config, Kind::Float).unwrap();
        let shapes = blank.shapes();
        let rows = |name: &str| shapes[&format!("encoder.block.0.layer.{name}.weight")][0] as u64;
        assert_eq!(rows("0.SelfAttention.q"), inner_width(&config));
        assert_eq!(rows("1.DenseReluDense.wi_0"), config.d_ff as u64);
    }

    #[test]
    fn the_weight_that_is_wide_in_f16_is_the_last_of_the_feed_forward_layer() {
        let blank = Weights::blank();
        T5Encoder::new(&blank, &tiny(), Kind::Half).unwrap();
        let names: Vec<_> = blank.shapes().into_keys().collect();
        let wide = names.iter().filter(|name| held_kind(name, Kind::Half) == Kind::Float);
        let expected = ["encoder.block.0.layer.1.DenseReluDense.wo.weight"];
        assert_eq!(wide.collect::<Vec<_>>(), expected);
        assert!(
            names
                .iter()
                .all(|name| held_kind(name, Kind::BFloat16) == Kind::BFloat16)
        );
    }
}
