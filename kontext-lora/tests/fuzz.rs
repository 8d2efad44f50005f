//! Fuzzing of LoRA files: each broken file is prepared for a model or refused, in time, and for no more memory than
//! its size explains. See `kontext_fixtures::fuzz` for a long run.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{dit, families, inspect, lenient, prepare};
use kontext_core::{Error, Result};
use kontext_dit::Dit;
use kontext_fixtures::fuzz::{Counting, Draw, Taken, Target, Tensors, address_space, alone, change_bytes, long, short};
use kontext_fixtures::{Part, described_file, safetensors_file};
use kontext_lora::Lora;
use serde_json::json;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Names of layers, in the words of several families.
const STARTS: [&str; 9] = [
    "lora_unet_img_in",
    "diffusion_model.img_in",
    "transformer.transformer_blocks.0.attn.to_q",
    "base_model.model.transformer_blocks.0.attn.to_q",
    "double_blocks.0.processor.proj_lora1",
    "lycoris_x_embedder",
    "transformer.img_in.proj",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_transformer_single_transformer_blocks_0_attn_to_v_",
];
/// Names of factors.
const ENDS: [&str; 28] = [
    ".lora_down.weight",
    ".lora_up.weight",
    ".alpha",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_A.default_0.weight",
    ".lora_B.default_0.weight",
    ".lora_B.default_0.bias",
    ".lora_B.bias",
    ".lora_magnitude_vector.default_0.weight",
    ".lora_mid.weight",
    ".down.weight",
    ".up.weight",
    ".lokr_w1",
    ".lokr_w2",
    ".lokr_w1_a",
    ".lokr_w1_b",
    ".lokr_w2_a",
    ".lokr_w2_b",
    ".lokr_t2",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".dora_scale",
    ".diff",
    ".diff_b",
    "",
];

/// The LoRA files.
struct Loras {
    seeds: Vec<Tensors>,
    dit: Dit,
}

impl Loras {
    fn new() -> Self {
        let seed = |(family, parts): (&str, Vec<Part>)| {
            let metadata = match family {
                "kohya" => json!({ "ss_network_module": "networks.lora_flux", "ss_network_alpha": "4" }),
                "PEFT" => {
                    json!({ "lora_adapter_metadata": r#"{"transformer.r": 2, "transformer.lora_alpha": 4}"# })
                }
                _ => json!({ "format": "pt" }),
            };
            Tensors::read(&described_file(&parts, &metadata), &STARTS, &ENDS).unwrap()
        };
        Self {
            seeds: families().into_iter().map(seed).collect(),
            dit: dit(),
        }
    }
}

impl Target for Loras {
    fn sound(&self) -> Vec<Vec<u8>> {
        self.seeds.iter().map(Tensors::bytes).collect()
    }

    fn file(&self, draw: &mut Draw) -> Vec<u8> {
        let mut changed = draw.pick(&self.seeds).clone();
        let (fields, bytes) = *draw.pick(&[(1, 0), (2, 0), (4, 0), (8, 0), (0, 1), (0, 3), (1, 1)]);
        (0..fields).for_each(|_| changed.change(draw));
        let mut file = changed.bytes();
        (0..bytes).for_each(|_| change_bytes(&mut file, draw));
        file
    }

    /// Returns 64 times the file, and 100 kB for the names of the model's layers and for messages.
    fn allowed(&self, size: u64) -> u64 {
        64 * size + 100_000
    }

    fn explore(&self, path: &Path, _: u64) -> Taken {
        let mut taken = Taken::default();
        taken.phase("inspecting", || accepted(inspect(path)));
        let opened = taken.phase("opening", || accepted(lenient(path)));
        let strict = accepted(Lora::open(path));
        assert!(opened.is_some() || strict.is_none(), "refused only if more is allowed");
        if let Some(lora) = opened {
            // A layer of another size is refused here.
            taken.phase("preparing", || Some(accepted(prepare(&self.dit, &lora))));
        }
        taken
    }
}

/// Returns the result; an error must not be a bug, and not of libtorch.
fn accepted<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error @ (Error::Bug { .. } | Error::Torch { .. })) => panic!("{error:?}"),
        Err(_) => None,
    }
}

#[test]
fn broken_loras_are_prepared_or_refused_in_time_and_memory() {
    short(&Loras::new(), env!("CARGO_TARGET_TMPDIR"), 400);
}

#[test]
#[ignore = "it runs for half an hour: see kontext_fixtures::fuzz"]
fn broken_loras_without_end_are_prepared_or_refused_in_time_and_memory() {
    long(&Loras::new(), env!("CARGO_TARGET_TMPDIR"));
}

#[test]
fn files_that_claim_much_are_refused_for_no_more_memory_than_is_allowed() {
    let _alone = alone();
    let loras = Loras::new();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    let long = |name: &str, shape: &[u64]| Part::filled(&format!("lycoris_x_embedder.{name}"), shape, 0.5);
    // Vectors whose product would have 900 million elements.
    let product = |[first, second, other]: [&str; 3]| {
        vec![
            long(first, &[30_000, 1]),
            long(second, &[1, 30_000]),
            long(other, &[1, 1]),
        ]
    };
    // Thousands of tensors that match nothing, with long names.
    let tail = "attn_to_q_".repeat(40);
    let strange = |index| Part::filled(&format!("lora_unet_transformer_blocks_{index}_{tail}.alpha"), &[], 1.0);
    let name = format!("lora_unet_double_blocks_{}_img_mod_lin.alpha", "9".repeat(1_000_000));
    // The first use starts libtorch's threads.
    for sound in loras.sound() {
        std::fs::write(&path, &sound).unwrap();
        loras.explore(&path, sound.len() as u64);
    }
    for (what, parts) in [
        ("the first factor", product(["lokr_w1_a", "lokr_w1_b", "lokr_w2"])),
        ("the second factor", product(["lokr_w2_a", "lokr_w2_b", "lokr_w1"])),
        (
            "a wide layer",
            vec![long("lora_A.weight", &[1, 30_000]), long("lora_B.weight", &[30_000, 1])],
        ),
        ("many names", (0..5000).map(strange).collect::<Vec<_>>()),
        ("a long name", vec![Part::filled(&name, &[], 1.0)]),
    ] {
        let file = safetensors_file(&parts);
        let size = file.len() as u64;
        std::fs::write(&path, &file).unwrap();
        let before = address_space();
        for (phase, bytes) in loras.explore(&path, size).peaks {
            assert!(bytes <= loras.allowed(size), "{phase} {what}: {bytes} bytes for {size}");
        }
        let used = lenient(&path).and_then(|lora| prepare(&loras.dit, &lora));
        assert!(used.is_err() || Lora::open(&path).is_err(), "{what}");
        let grown = address_space().zip(before).map(|(after, before)| after - before);
        assert!(grown.is_none_or(|grown| grown < 256 << 20), "{what}: {grown:?}");
    }
}
