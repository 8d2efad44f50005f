//! Tests of the encoders against transformers (tests/reference/parts/text.py), and of opening their files.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::collections::HashMap;
use std::path::Path;

use common::{asset, chain, fixture, tiny_clip, tiny_clip_config, tiny_t5, tiny_t5_config};
use kontext_core::{Device, Kind, ModelPart, Tensor};
use kontext_nn::Weights;
use kontext_text::{ClipConfig, ClipEncoder, Prompt, T5Config, T5Encoder, TextEncoder, Tokenizer, Truncation, Unknown};
use serde::de::DeserializeOwned;
use serde_json::json;

/// Tolerance for f32 against f32 in another order of summation. T5 norms its states only at the end: inside,
/// the residual grows with depth and no mean is subtracted, so errors are relative to the whole tensor.
const F32: f64 = 1e-5;

struct Fixture {
    tensors: HashMap<String, Tensor>,
    metadata: std::collections::BTreeMap<String, String>,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let path = fixture(name);
        let tensors = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
        Self {
            tensors,
            metadata: Weights::open(path).unwrap().store().metadata(),
        }
    }

    fn config<C: DeserializeOwned>(&self, variant: &str) -> C {
        serde_json::from_str(&self.metadata[variant]).unwrap()
    }

    fn seed(&self) -> u64 {
        self.metadata["seed"].parse().unwrap()
    }
}

/// Computes the relative distance |a - b| / |b| over all elements.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    f64::try_from((a - &b).norm() / b.norm()).unwrap()
}

/// Collects the tensors that a model has requested from synthetic weights.
fn made(weights: &Weights) -> Vec<(String, Tensor)> {
    weights
        .shapes()
        .into_iter()
        .map(|(name, shape)| (name.clone(), weights.tensor(&name, &shape).unwrap()))
        .collect()
}

fn t5_tensors(config: &T5Config) -> Vec<(String, Tensor)> {
    let weights = Weights::synthetic(5);
    T5Encoder::new(&weights, config, Kind::Float).unwrap();
    made(&weights)
}

fn some_ids(vocab: i64) -> Tensor {
    Tensor::from_slice(&(0..60).map(|i| (i * 37 + 5) % vocab).collect::<Vec<i64>>()).view([2, 30])
}

#[test]
fn t5_matches_reference_within_1e_5_f32() {
    let fixture = Fixture::open("t5.safetensors");
    for variant in ["gated", "relu"] {
        let t5 = T5Encoder::new(
            &Weights::synthetic(fixture.seed()),
            &fixture.config(variant),
            Kind::Float,
        )
        .unwrap();
        let states = t5.forward(&fixture.tensors["ids"]).unwrap();
        let error = distance(&states, &fixture.tensors[&format!("{variant}.last_hidden_state")]);
        assert!(error < F32, "{variant}: {error:e}");
    }
}

#[test]
fn clip_matches_reference_within_1e_5_f32() {
    let fixture = Fixture::open("clip.safetensors");
    for variant in ["quick", "gelu", "first_eos"] {
        let clip = ClipEncoder::new(
            &Weights::synthetic(fixture.seed()),
            &fixture.config(variant),
            Kind::Float,
        )
        .unwrap();
        let output = clip.forward(&fixture.tensors["ids"]).unwrap();
        let states = distance(
            &output.states,
            &fixture.tensors[&format!("{variant}.last_hidden_state")],
        );
        let pooled = distance(&output.pooled, &fixture.tensors[&format!("{variant}.pooler_output")]);
        assert!(states < F32 && pooled < F32, "{variant}: {states:e} {pooled:e}");
    }
}

#[test]
fn weights_stored_in_bf16_compute_in_f32() {
    // 2e-2: weights of 8 significant bits change the states of three layers by about 0.5 %.
    let fixture = Fixture::open("t5.safetensors");
    let stored = Weights::synthetic(fixture.seed()).kind(Kind::BFloat16);
    let states = T5Encoder::new(&stored, &fixture.config("gated"), Kind::Float)
        .unwrap()
        .forward(&fixture.tensors["ids"])
        .unwrap();
    assert_eq!(states.kind(), Kind::Float);
    let error = distance(&states, &fixture.tensors["gated.last_hidden_state"]);
    assert!(error > 1e-4 && error < 2e-2, "{error:e}");

    let fixture = Fixture::open("clip.safetensors");
    let stored = Weights::synthetic(fixture.seed()).kind(Kind::BFloat16);
    let output = ClipEncoder::new(&stored, &fixture.config("quick"), Kind::Float)
        .unwrap()
        .forward(&fixture.tensors["ids"])
        .unwrap();
    assert_eq!(output.pooled.kind(), Kind::Float);
    let error = distance(&output.pooled, &fixture.tensors["quick.pooler_output"]);
    assert!(error > 1e-4 && error < 2e-2, "{error:e}");
}

#[test]
fn half_kinds_stay_near_the_reference_and_return_their_kind() {
    // Three layers, each a few roundings of 11 bits (f16) or 8 bits (bf16).
    let fixture = Fixture::open("t5.safetensors");
    for (kind, tolerance) in [(Kind::Half, 5e-3), (Kind::BFloat16, 4e-2)] {
        let t5 = T5Encoder::new(
            &Weights::synthetic(fixture.seed()).kind(kind),
            &fixture.config("gated"),
            kind,
        )
        .unwrap();
        let states = t5.forward(&fixture.tensors["ids"]).unwrap();
        assert_eq!(states.kind(), kind);
        let error = distance(&states, &fixture.tensors["gated.last_hidden_state"]);
        assert!(error < tolerance, "{kind:?}: {error:e}");
    }
}

#[test]
fn t5_built_for_f32_computes_in_bf16_on_request_and_in_f32_as_before() {
    // Weights in f32 and x in bf16: half the roundings of a model stored in bf16, whose bound is 4e-2.
    let fixture = Fixture::open("t5.safetensors");
    let t5 = T5Encoder::new(
        &Weights::synthetic(fixture.seed()),
        &fixture.config("gated"),
        Kind::Float,
    )
    .unwrap();
    let (ids, expected) = (&fixture.tensors["ids"], &fixture.tensors["gated.last_hidden_state"]);
    let narrow = t5.forward_in(ids, Kind::BFloat16).unwrap();
    assert_eq!(narrow.kind(), Kind::BFloat16);
    let error = distance(&narrow, expected);
    assert!(error > 1e-4 && error < 4e-2, "{error:e}");
    assert!(
        t5.forward_in(ids, Kind::Float)
            .unwrap()
            .equal(&t5.forward(ids).unwrap())
    );
    let refused = t5.forward_in(ids, Kind::Half).unwrap_err().to_string();
    assert!(refused.contains("expected the encoder's, Float, got Half"), "{refused}");
}

#[test]
fn t5_in_f16_survives_activations_beyond_its_range() {
    // Inner activations of 1e4 times 1e4 far exceed f16's maximum (65504), as those of T5 XXL do.
    let config = tiny_t5_config();
    let large = |(name, value): (String, Tensor)| {
        let factor = if name.contains("wi_") { 2000.0 } else { 1.0 };
        (name, value * factor)
    };
    let weights = || Weights::from_tensors(t5_tensors(&config).into_iter().map(large));
    let wide = T5Encoder::new(&weights(), &config, Kind::Float)
        .unwrap()
        .forward(&some_ids(160))
        .unwrap();
    let half = T5Encoder::new(&weights().kind(Kind::Half), &config, Kind::Half)
        .unwrap()
        .forward(&some_ids(160))
        .unwrap();
    let error = distance(&half, &wide);
    assert!(error < 2e-2, "{error:e}");
}

fn save(path: &Path, tensors: &[(String, Tensor)]) {
    kontext_formats::save(path, tensors, None).unwrap();
}

#[test]
fn t5_opens_as_a_folder_and_as_a_single_file_with_either_name_of_the_embedding() {
    let (folder, config) = (tempfile::tempdir().unwrap(), tiny_t5_config());
    let tensors = t5_tensors(&config);
    let expected = T5Encoder::new(&Weights::synthetic(5), &config, Kind::Float)
        .unwrap()
        .forward(&some_ids(160))
        .unwrap();
    let same = |path: &Path| {
        let t5 = T5Encoder::open(path, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(t5.config(), &config);
        assert!(t5.forward(&some_ids(160)).unwrap().equal(&expected));
    };
    let single = folder.path().join("model.safetensors");
    save(&single, &tensors);
    same(&single);
    same(folder.path());
    let json = r#"{"vocab_size": 160, "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 5, "feed_forward_proj": "gated-gelu", "model_type": "t5"}"#;
    std::fs::write(folder.path().join("config.json"), json).unwrap();
    same(folder.path());

    let embedding = tensors
        .iter()
        .find(|(name, _)| name == "shared.weight")
        .unwrap()
        .1
        .shallow_clone();
    let mut both = tensors
        .iter()
        .map(|(n, t)| (n.clone(), t.shallow_clone()))
        .collect::<Vec<_>>();
    both.push(("encoder.embed_tokens.weight".to_owned(), embedding));
    for extra in [
        "decoder.block.0.layer.0.layer_norm.weight",
        "lm_head.weight",
        "scaled_fp8",
    ] {
        both.push((extra.to_owned(), Tensor::ones([2], (Kind::Float, Device::Cpu))));
    }
    save(&single, &both);
    same(&single);
    both.retain(|(name, _)| name != "shared.weight");
    save(&single, &both);
    same(&single);

    both.push((
        "encoder.block.0.extra.weight".to_owned(),
        Tensor::ones([2], (Kind::Float, Device::Cpu)),
    ));
    save(&single, &both);
    let error = T5Encoder::open(&single, Kind::Float, Device::Cpu).unwrap_err();
    assert!(
        chain(&error).contains("`encoder.block.0.extra.weight`"),
        "{}",
        chain(&error)
    );
}

#[test]
fn the_relu_variant_is_told_by_its_tensors() {
    let (folder, config) = (
        tempfile::tempdir().unwrap(),
        Fixture::open("t5.safetensors").config::<T5Config>("relu"),
    );
    let file = folder.path().join("t5.safetensors");
    save(&file, &t5_tensors(&config));
    assert_eq!(
        T5Encoder::open(&file, Kind::Float, Device::Cpu).unwrap().config(),
        &config
    );
}

#[test]
fn scaled_fp8_weights_are_used_with_their_factors() {
    // 448 is the largest 8-bit float (e4m3); scaled files map each weight's maximum to it.
    let (folder, config) = (tempfile::tempdir().unwrap(), tiny_t5_config());
    let tensors = t5_tensors(&config);
    let is_linear = |name: &str| {
        ["q.", "k.", "v.", "o.", "wi_0.", "wi_1.", "wo."]
            .iter()
            .any(|p| name.ends_with(&format!("{p}weight")))
    };
    let (mut stored, mut rounded) = (vec![], vec![]);
    for (name, value) in &tensors {
        if !is_linear(name) {
            stored.push((name.clone(), value.shallow_clone()));
            rounded.push((name.clone(), value.shallow_clone()));
            continue;
        }
        let scale = value.abs().max() / 448.0;
        let eight = (value / &scale).to_kind(Kind::Float8e4m3fn);
        rounded.push((name.clone(), eight.to_kind(Kind::Float) * &scale));
        stored.push((name.clone(), eight));
        stored.push((name.replace(".weight", ".scale_weight"), scale));
        stored.push((name.replace(".weight", ".scale_input"), Tensor::from(1.0_f32)));
    }
    stored.push((
        "scaled_fp8".to_owned(),
        Tensor::zeros([2], (Kind::Float, Device::Cpu)).to_kind(Kind::Float8e4m3fn),
    ));
    let file = folder.path().join("t5xxl_fp8_e4m3fn_scaled.safetensors");
    save(&file, &stored);
    let ours = T5Encoder::open(&file, Kind::Float, Device::Cpu)
        .unwrap()
        .forward(&some_ids(160))
        .unwrap();
    let expected = T5Encoder::new(&Weights::from_tensors(rounded), &config, Kind::Float)
        .unwrap()
        .forward(&some_ids(160))
        .unwrap();
    assert!(distance(&ours, &expected) < F32);
}

#[test]
fn clip_opens_as_a_folder_and_as_a_single_file_with_and_without_prefix() {
    let (folder, config) = (tempfile::tempdir().unwrap(), tiny_clip_config());
    let weights = Weights::synthetic(6);
    let expected = ClipEncoder::new(&weights, &config, Kind::Float)
        .unwrap()
        .forward(&some_ids(634))
        .unwrap();
    let file = folder.path().join("clip_l.safetensors");
    let same = |tensors: &[(String, Tensor)]| {
        save(&file, tensors);
        let clip = ClipEncoder::open(&file, Kind::Float, Device::Cpu).unwrap();
        assert_eq!(clip.config(), &config);
        assert!(clip.forward(&some_ids(634)).unwrap().pooled.equal(&expected.pooled));
    };
    let mut tensors = made(&weights);
    for extra in [
        "logit_scale",
        "text_projection.weight",
        "text_model.embeddings.position_ids",
        "vision_model.x.weight",
    ] {
        tensors.push((extra.to_owned(), Tensor::ones([2], (Kind::Int64, Device::Cpu))));
    }
    same(&tensors);
    let bare: Vec<_> = made(&weights)
        .into_iter()
        .map(|(name, value)| (name.replace("text_model.", ""), value))
        .collect();
    same(&bare);

    save(&folder.path().join("model.safetensors"), &bare);
    std::fs::write(
        folder.path().join("config.json"),
        r#"{"hidden_size": 128, "hidden_act": "tanh"}"#,
    )
    .unwrap();
    let error = ClipEncoder::open(folder.path(), Kind::Float, Device::Cpu).unwrap_err();
    assert!(chain(&error).contains("unknown variant `tanh`"), "{}", chain(&error));
}

#[test]
fn ids_that_clip_cannot_take_are_refused() {
    let clip = ClipEncoder::new(&Weights::synthetic(6), &tiny_clip_config(), Kind::Float).unwrap();
    let long = Tensor::zeros([1, 78], (Kind::Int64, Device::Cpu));
    assert!(
        clip.forward(&long)
            .unwrap_err()
            .to_string()
            .contains("at most 77 tokens, got 78")
    );
    assert!(clip.forward(&Tensor::from_slice(&[634_i64]).unsqueeze(0)).is_err());
    let explicit = ClipConfig {
        eos_token_id: 633,
        ..tiny_clip_config()
    };
    let clip = ClipEncoder::new(&Weights::synthetic(6), &explicit, Kind::Float).unwrap();
    let error = clip.forward(&Tensor::from_slice(&[1_i64, 2]).unsqueeze(0)).unwrap_err();
    assert!(error.to_string().contains("an end token 633"), "{error}");
}

#[test]
fn the_published_configurations_are_the_presets() {
    if let Some(folder) = asset("flux1-layout/FLUX.1-dev") {
        let read = |part: &str| std::fs::read_to_string(folder.join(part).join("config.json")).unwrap();
        assert_eq!(
            serde_json::from_str::<T5Config>(&read("text_encoder_2")).unwrap(),
            T5Config::xxl()
        );
        assert_eq!(
            serde_json::from_str::<ClipConfig>(&read("text_encoder")).unwrap(),
            ClipConfig::large()
        );

        let index = std::fs::read(folder.join("text_encoder_2/model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let published: Vec<&String> = index["weight_map"]
            .as_object()
            .unwrap()
            .keys()
            .filter(|n| *n != "encoder.embed_tokens.weight")
            .collect();
        let asked = t5_tensors(&T5Config {
            num_layers: 24,
            ..tiny_t5_config()
        });
        let mut asked: Vec<&String> = asked.iter().map(|(name, _)| name).collect();
        asked.sort();
        let mut published = published;
        published.sort();
        assert_eq!(asked, published);
    }
}

fn text_encoder() -> TextEncoder {
    let t5 = T5Encoder::new(&Weights::synthetic(5), &tiny_t5_config(), Kind::Float).unwrap();
    let clip = ClipEncoder::new(&Weights::synthetic(6), &tiny_clip_config(), Kind::Float).unwrap();
    TextEncoder::new(clip, tiny_clip(), t5, tiny_t5()).unwrap()
}

#[test]
fn a_prompt_is_encoded_by_both_encoders_to_the_default_lengths() {
    let (conditioning, unseen) = text_encoder().encode("make the cat wear a red hat").unwrap();
    assert_eq!(conditioning.prompt_embeds.size(), [1, 512, 24]);
    assert_eq!(conditioning.pooled.size(), [1, 128]);
    assert!(unseen.is_empty(), "{unseen:?}");
    let (schnell, _) = text_encoder()
        .max_sequence_length(256)
        .encode("make the cat wear a red hat")
        .unwrap();
    assert_eq!(schnell.prompt_embeds.size(), [1, 256, 24]);
    assert!(schnell.pooled.equal(&conditioning.pooled));
}

#[test]
fn what_each_encoder_cuts_is_reported() {
    let prompt = "keep the background unchanged. ".repeat(30) + "the end";
    let (_, unseen) = text_encoder().max_sequence_length(64).encode(&prompt).unwrap();
    let cuts = unseen.truncated;
    assert_eq!(
        cuts.iter().map(|c| c.encoder).collect::<Vec<_>>(),
        [ModelPart::T5, ModelPart::Clip]
    );
    assert!(
        cuts.iter()
            .all(|Truncation { text, .. }| prompt.ends_with(text.as_str()) && text.ends_with("the end"))
    );
}

#[test]
fn clip_sees_the_first_text_of_a_prompt_and_t5_the_second() {
    let text = text_encoder();
    let encode = |prompt: Prompt<'_>| text.encode(prompt).unwrap().0;
    let (cat, hat) = (encode(Prompt::from("a cat")), encode(Prompt::from("a red hat")));
    assert!(!cat.pooled.equal(&hat.pooled) && !cat.prompt_embeds.equal(&hat.prompt_embeds));
    let both = encode(Prompt {
        clip: "a cat",
        t5: "a red hat",
    });
    assert!(both.pooled.equal(&cat.pooled) && both.prompt_embeds.equal(&hat.prompt_embeds));
}

#[test]
fn what_each_encoder_does_not_know_is_reported_for_its_own_text() {
    let prompt = Prompt {
        clip: "a cat",
        t5: "a 漢字 hat ☃, a 漢字",
    };
    let (_, unseen) = text_encoder().encode(prompt).unwrap();
    let texts = ["漢字", "☃"].map(str::to_owned).to_vec();
    assert_eq!(
        unseen.unknown,
        [Unknown {
            encoder: ModelPart::T5,
            texts
        }]
    );
    assert!(unseen.truncated.is_empty() && !unseen.is_empty());
}

#[test]
fn t5_attends_to_padding() {
    let text = text_encoder();
    let short = text.encode("a cat").unwrap().0.prompt_embeds;
    let shorter = text_encoder()
        .max_sequence_length(256)
        .encode("a cat")
        .unwrap()
        .0
        .prompt_embeds;
    assert!(
        distance(&short.narrow(1, 0, 4), &shorter.narrow(1, 0, 4)) > 1e-4,
        "padding had no effect"
    );
}

#[test]
fn a_tokenizer_with_more_ids_than_the_model_is_refused() {
    let t5 = T5Encoder::new(
        &Weights::synthetic(5),
        &T5Config {
            vocab_size: 80,
            ..tiny_t5_config()
        },
        Kind::Float,
    )
    .unwrap();
    let clip = ClipEncoder::new(&Weights::synthetic(6), &tiny_clip_config(), Kind::Float).unwrap();
    let error = TextEncoder::new(clip, tiny_clip(), t5, tiny_t5()).unwrap_err();
    assert!(error.to_string().contains("the T5 model has 80"), "{error}");
}

#[test]
fn a_tokenizer_of_the_other_encoder_is_refused_though_its_ids_fit() {
    let with = |eos_token_id, clip_tokenizer: Tokenizer, t5_tokenizer: Tokenizer| {
        let t5 = T5Config {
            vocab_size: 634,
            ..tiny_t5_config()
        };
        let t5 = T5Encoder::new(&Weights::synthetic(5), &t5, Kind::Float).unwrap();
        let clip = ClipConfig {
            eos_token_id,
            ..tiny_clip_config()
        };
        let clip = ClipEncoder::new(&Weights::synthetic(6), &clip, Kind::Float).unwrap();
        TextEncoder::new(clip, clip_tokenizer, t5, t5_tokenizer).map(drop)
    };
    // 2 in older configurations of CLIP means the highest id.
    for eos in [2, 633] {
        with(eos, tiny_clip(), tiny_t5()).unwrap();
        let error = with(eos, tiny_t5(), tiny_t5()).unwrap_err().to_string();
        assert!(
            error.contains("it ends prompts with token 1, the CLIP model expects "),
            "{error}"
        );
        let error = with(eos, tiny_clip(), tiny_clip()).unwrap_err().to_string();
        assert!(
            error.contains("adds 2 tokens to a prompt, the T5 model expects an end token only"),
            "{error}"
        );
    }
}

/// A tokenizer of CLIP's form with the words `a` and, above the end token, `own` in its vocabulary and `added` added
/// to it.
fn clip_with(own: &[&str], added: &[&str]) -> Tokenizer {
    let words = ["a", "<|startoftext|>", "<|endoftext|>"];
    let vocab: serde_json::Map<_, _> = words
        .iter()
        .chain(own)
        .map(|word| (*word).to_owned())
        .zip((0..).map(|id| json!(id)))
        .collect();
    let first = vocab.len();
    let added = added.iter().enumerate().map(|(index, word)| {
        json!({"id": first + index, "content": word, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": false})
    });
    let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let parts = [
        special(words[1]),
        json!({"Sequence": {"id": "A", "type_id": 0}}),
        special(words[2]),
    ];
    let pair = [parts.to_vec(), vec![json!({"Sequence": {"id": "B", "type_id": 1}})]].concat();
    let named = |id: usize| json!({"id": words[id], "ids": [id], "tokens": [words[id]]});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null, "pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": parts, "pair": pair,
                           "special_tokens": {words[1]: named(1), words[2]: named(2)}},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": words[2]},
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    Tokenizer::open(path).unwrap()
}

#[test]
fn tokens_added_above_clips_end_token_are_accepted_and_own_ones_are_not() {
    let with = |tokenizer| {
        let t5 = T5Encoder::new(&Weights::synthetic(5), &tiny_t5_config(), Kind::Float).unwrap();
        let config = ClipConfig {
            eos_token_id: 2,
            ..tiny_clip_config()
        };
        let clip = ClipEncoder::new(&Weights::synthetic(6), &config, Kind::Float).unwrap();
        TextEncoder::new(clip, tokenizer, t5, tiny_t5())
    };
    // As by textual inversion.
    let text = with(clip_with(&[], &["<cat>"])).unwrap();
    let pooled = |prompt: &str| text.encode(prompt).unwrap().0.pooled;
    assert!(distance(&pooled("a <cat>"), &pooled("a")) > 1e-4);
    let error = with(clip_with(&["b"], &[])).unwrap_err().to_string();
    assert!(
        error.contains("it ends prompts with token 2, the CLIP model expects 3"),
        "{error}"
    );
}

#[test]
fn the_pooled_vector_is_at_the_highest_id_or_at_the_end_token_by_its_id_as_in_transformers() {
    let encoder = |eos_token_id| {
        let config = ClipConfig {
            eos_token_id,
            ..tiny_clip_config()
        };
        ClipEncoder::new(&Weights::synthetic(6), &config, Kind::Float).unwrap()
    };
    // transformers takes the first `argmax` of the ids if the end token is 2, else the first id that equals it.
    let ids = Tensor::from_slice(&[1_i64, 5, 600, 9, 9]).unsqueeze(0);
    for (eos, place) in [(2, 2), (9, 3)] {
        let output = encoder(eos).forward(&ids).unwrap();
        assert_eq!(output.pooled, output.states.select(1, place), "{eos}");
    }
    // So a token added above the end token takes its place.
    let ids = clip_with(&[], &["<cat>"]).encode("a <cat>", 77).unwrap();
    assert_eq!(ids.ids[..4], [1, 0, 3, 2]);
    let output = encoder(2).forward(&ids.tensor().unwrap()).unwrap();
    let t5 = T5Encoder::new(&Weights::synthetic(5), &tiny_t5_config(), Kind::Float).unwrap();
    let text = TextEncoder::new(encoder(2), clip_with(&[], &["<cat>"]), t5, tiny_t5()).unwrap();
    let pooled = text.encode("a <cat>").unwrap().0.pooled;
    assert_eq!(pooled, output.states.select(1, 2));
}

#[test]
fn what_an_encoder_does_not_see_is_known_without_encoding() {
    let text = text_encoder().max_sequence_length(16);
    for prompt in ["a cat", "", &"a cat ".repeat(99), "a \u{6f22} cat"] {
        assert_eq!(text.unseen(prompt).unwrap(), text.encode(prompt).unwrap().1, "{prompt}");
    }
    assert!(!text.unseen(&"a cat ".repeat(99)).unwrap().is_empty());
}
