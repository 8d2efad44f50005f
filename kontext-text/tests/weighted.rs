//! Tests of prompts with weighted words.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::print_stdout)]

mod common;

use common::{tiny_clip, tiny_clip_config, tiny_t5, tiny_t5_config};
use kontext_core::{Conditioning, Kind, ModelPart, Tensor};
use kontext_nn::Weights;
use kontext_text::{ClipEncoder, Prompt, T5Encoder, TextEncoder, Unseen};

const LENGTH: usize = 64;
const PLAIN: &str = "make the cat wear a red hat";

fn text_encoder(kind: Kind) -> TextEncoder {
    let t5 = T5Encoder::new(&Weights::synthetic(5), &tiny_t5_config(), kind).unwrap();
    let clip = ClipEncoder::new(&Weights::synthetic(6), &tiny_clip_config(), kind).unwrap();
    let text = TextEncoder::new(clip, tiny_clip(), t5, tiny_t5()).unwrap();
    text.max_sequence_length(LENGTH)
}

fn weighted(text: &TextEncoder, prompt: &str) -> (Conditioning, Unseen) {
    text.encode_weighted(prompt, text.t5().compute()).unwrap()
}

fn plain(text: &TextEncoder, prompt: &str) -> Conditioning {
    text.encode(prompt).unwrap().0
}

fn equal(a: &Conditioning, b: &Conditioning) -> bool {
    a.prompt_embeds.equal(&b.prompt_embeds) && a.pooled.equal(&b.pooled)
}

/// Returns the number of T5's tokens of a text, without the end token.
fn tokens(text: &str) -> i64 {
    tiny_t5().encode(text, LENGTH).unwrap().used as i64 - 1
}

#[test]
fn a_prompt_of_weight_1_has_the_bytes_of_a_plain_one() {
    let text = text_encoder(Kind::Float);
    let expected = plain(&text, PLAIN);
    for prompt in [
        PLAIN,
        "make the cat wear a (red:1) hat",
        "(make:1.0) the cat (wear a (red:1) hat:1)",
        "((make the cat wear a red hat:1))",
    ] {
        assert!(equal(&weighted(&text, prompt).0, &expected), "{prompt}");
    }
    assert!(equal(&weighted(&text, "").0, &plain(&text, "")));
    // Escaped ones are text, and those of a plain prompt are, too.
    assert!(equal(
        &weighted(&text, r"a \(red\) hat").0,
        &plain(&text, "a (red) hat")
    ));
    assert!(!equal(&weighted(&text, "a (red) hat").0, &plain(&text, "a (red) hat")));
}

/// Computes the states by ComfyUI's rule in f64, from two plain encodings.
fn by_hand(text: &TextEncoder, begin: i64, end: i64, weight: f64) -> Tensor {
    let states = |prompt| plain(text, prompt).prompt_embeds.to_kind(Kind::Double);
    let (z, empty) = (states(PLAIN), states(""));
    let weighed = (&z - &empty) * weight + &empty;
    let part = |tensor: &Tensor, begin: i64, end: i64| tensor.narrow(1, begin, end - begin);
    let length = LENGTH as i64;
    Tensor::cat(
        &[part(&z, 0, begin), part(&weighed, begin, end), part(&z, end, length)],
        1,
    )
}

#[test]
fn weighted_tokens_move_away_from_those_of_an_empty_prompt() {
    let (begin, end) = (tokens("make the cat wear a"), tokens("make the cat wear a red"));
    assert!(end > begin);
    // 1e-6 of states of size 1 are a few roundings of f32; bf16 has 8 bits.
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 1.0 / 256.0)] {
        let text = text_encoder(kind);
        for (written, weight) in [
            ("(red:1.3)", 1.3),
            ("(red)", 1.1),
            ("((red))", 1.21),
            ("(red:0)", 0.0),
            ("(red:-1)", -1.0),
        ] {
            let (conditioning, unseen) = weighted(&text, &format!("make the cat wear a {written} hat"));
            let states = &conditioning.prompt_embeds;
            assert_eq!((states.kind(), states.size()), (kind, vec![1, 64, 24]));
            let expected = by_hand(&text, begin, end, weight);
            let error = (states.to_kind(Kind::Double) - &expected).abs().max();
            let error = f64::try_from(error).unwrap() / f64::try_from(expected.abs().max()).unwrap();
            assert!(error < tolerance, "{kind:?} {written}: {error:e}");
            // The others keep their bits, and CLIP sees no weight.
            let expected = plain(&text, PLAIN);
            for (at, length) in [(0, begin), (end, LENGTH as i64 - end)] {
                let part = |tensor: &Tensor| tensor.narrow(1, at, length);
                assert!(part(states).equal(&part(&expected.prompt_embeds)));
            }
            assert!(conditioning.pooled.equal(&expected.pooled) && unseen.is_empty());
        }
    }
}

#[test]
fn pieces_have_tokens_of_their_own() {
    let text = text_encoder(Kind::Float);
    let (divided, spaced) = (weighted(&text, "a red(hat:1)").0, plain(&text, "a red hat"));
    assert!(equal(&divided, &spaced) && !equal(&divided, &plain(&text, "a redhat")));
}

#[test]
fn each_encoder_has_its_own_weights() {
    let text = text_encoder(Kind::Float);
    let prompt = Prompt {
        clip: "a (cat:2)",
        t5: "a red (hat:1)",
    };
    let (both, _) = text.encode_weighted(prompt, Kind::Float).unwrap();
    assert!(both.pooled.equal(&plain(&text, "a cat").pooled));
    assert!(both.prompt_embeds.equal(&plain(&text, "a red hat").prompt_embeds));
}

#[test]
fn what_is_not_seen_is_reported_without_the_markup() {
    let text = text_encoder(Kind::Float);
    let prompt = "a (漢字:1.2) hat, 漢字 (☃) ".to_owned() + &"(keep the background.) ".repeat(30) + "(the end:0.5)";
    let (_, unseen) = weighted(&text, &prompt);
    let bare = "keep the background. ".repeat(30) + "the end";
    let cuts: Vec<ModelPart> = unseen.truncated.iter().map(|cut| cut.encoder).collect();
    assert_eq!(cuts, [ModelPart::T5, ModelPart::Clip]);
    for cut in &unseen.truncated {
        assert!(
            bare.ends_with(&cut.text) && cut.text.ends_with("background. the end"),
            "{cut:?}"
        );
    }
    let t5 = unseen
        .unknown
        .iter()
        .find(|unknown| unknown.encoder == ModelPart::T5)
        .unwrap();
    assert_eq!(t5.texts, ["漢字", "☃"]);
}
