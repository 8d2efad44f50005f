//! Mutated LoRA files: reading them, matching them with a model and preparing their adapters ends in a result
//! or in an error, never in a panic, and takes memory in proportion to the file.
//!
//! Files are written byte by byte, so that their headers can hold what no writer writes.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::Path;

use common::config;
use kontext_core::{CheckpointError, Error, Result};
use kontext_dit::Dit;
use kontext_lora::{Lora, LoraTarget};
use kontext_nn::Weights;

/// A tensor of a file: name, dtype, shape, bytes.
#[derive(Clone)]
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    bytes: Vec<u8>,
}

impl Stored {
    fn f32(name: &str, shape: &[u64], value: f32) -> Self {
        let count = shape.iter().product::<u64>() as usize;
        Self {
            name: name.to_owned(),
            dtype: "F32",
            shape: shape.to_vec(),
            bytes: value.to_le_bytes().repeat(count),
        }
    }

    /// Returns the same bytes as another dtype, with a shape of one side.
    fn as_dtype(&self, dtype: &'static str, bits: u64) -> Self {
        let shape = vec![self.bytes.len() as u64 * 8 / bits];
        let own = self.shape.clone();
        let shape = if bits == 32 { own } else { shape };
        Self {
            dtype,
            shape,
            ..self.clone()
        }
    }
}

/// Returns the bytes of a safetensors file.
fn file(tensors: &[Stored], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let facts: serde_json::Map<_, _> = metadata
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).into()))
            .collect();
        header.insert("__metadata__".to_owned(), facts.into());
    }
    let mut data = Vec::new();
    for Stored {
        name,
        dtype,
        shape,
        bytes,
    } in tensors
    {
        let range = [data.len(), data.len() + bytes.len()];
        data.extend_from_slice(bytes);
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": range });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::Value::from(header).to_string();
    let mut all = (header.len() as u64).to_le_bytes().to_vec();
    all.extend(header.bytes());
    all.extend(data);
    all
}

/// A model, and a file to write to.
struct Desk {
    dit: Dit,
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let dit = Dit::new(&Weights::synthetic(1), &config(), |_| ()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Self { dit, folder }
    }

    /// Does all that a pipeline does with a file.
    fn open(&self, bytes: &[u8]) -> Result<()> {
        let path = self.folder.path().join("adapter_model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let _ = Lora::found_in(self.folder.path());
        if let Ok(report) = Lora::inspect(&path) {
            assert!(!report.to_string().is_empty());
        }
        let lenient = |path: &Path| Lora::options().allow_unmatched("*").allow_no_effect().open(path);
        let (strict, lenient) = (Lora::open(&path), lenient(&path));
        if let Ok(lora) = &lenient {
            let _set = self.dit.slots().prepare(&lora.adapters(&config(), |_| 0.5)?)?;
            for target in [LoraTarget::Clip, LoraTarget::T5] {
                lora.text_adapters(target, &self.dit.slots().sizes(), |_| 1.0)?;
            }
        }
        strict.and(lenient).map(drop)
    }
}

/// Returns a file of each family that fits the model: `img_in` [8, 16] and the queries of the double block
/// [8, 8].
fn families() -> Vec<(&'static str, Vec<Stored>)> {
    let layer = |module: &str, suffixes: &[(&str, &[u64])]| -> Vec<Stored> {
        let tensor = |(suffix, shape): &(&str, &[u64])| Stored::f32(&format!("{module}.{suffix}"), shape, 0.5);
        suffixes.iter().map(tensor).collect()
    };
    let kohya: &[(&str, &[u64])] = &[
        ("lora_down.weight", &[2, 16]),
        ("lora_up.weight", &[8, 2]),
        ("alpha", &[]),
    ];
    let peft: &[(&str, &[u64])] = &[
        ("lora_A.default_0.weight", &[2, 8]),
        ("lora_B.default_0.weight", &[8, 2]),
        ("lora_B.default_0.bias", &[8]),
        ("lora_magnitude_vector.default_0.weight", &[8]),
    ];
    let lokr: &[(&str, &[u64])] = &[
        ("lokr_w1_a", &[2, 1]),
        ("lokr_w1_b", &[1, 2]),
        ("lokr_w2_a", &[4, 2]),
        ("lokr_w2_b", &[2, 8]),
        ("alpha", &[1]),
        ("dora_scale", &[8, 1]),
    ];
    let loha: &[(&str, &[u64])] = &[
        ("hada_w1_a", &[8, 2]),
        ("hada_w1_b", &[2, 16]),
        ("hada_w2_a", &[8, 2]),
        ("hada_w2_b", &[2, 16]),
    ];
    let queries = "transformer_blocks.0.attn.to_q";
    vec![
        ("kohya", layer("lora_unet_img_in", kohya)),
        ("ComfyUI", layer("diffusion_model.img_in", kohya)),
        ("PEFT", layer(&format!("transformer.{queries}"), peft)),
        ("fal", layer(&format!("base_model.model.{queries}"), peft)),
        (
            "XLabs",
            layer(
                "double_blocks.0.processor.proj_lora1",
                &[("down.weight", &[2, 8]), ("up.weight", &[8, 2])],
            ),
        ),
        ("LoKr", layer("lycoris_x_embedder", lokr)),
        ("LoHa", layer("lycoris_x_embedder", loha)),
        (
            "full",
            layer("diffusion_model.img_in", &[("diff", &[8, 16]), ("diff_b", &[8])]),
        ),
        ("OneTrainer", layer("transformer.img_in.proj", kohya)),
        ("text", layer("lora_te1_text_model_encoder_layers_0_mlp_fc1", kohya)),
    ]
}

#[test]
fn no_mutation_of_a_file_ends_in_a_panic() {
    let desk = Desk::new();
    let shapes: [&[u64]; 12] = [
        &[],
        &[0],
        &[1],
        &[2],
        &[0, 16],
        &[16, 0],
        &[1, 1],
        &[16, 16],
        &[2, 16, 1, 1],
        &[2, 16, 3, 3],
        &[1; 9],
        // No elements, so that it fits into any file.
        &[1 << 40, 1 << 20, 0],
    ];
    let dtypes: [(&str, u64); 15] = [
        ("BOOL", 8),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("F4", 4),
        ("I16", 16),
        ("F16", 16),
        ("BF16", 16),
        ("I32", 32),
        ("U32", 32),
        ("F64", 64),
        ("C64", 64),
        ("no dtype", 32),
    ];
    for (family, whole) in families() {
        // The encoder is another model.
        assert!(
            desk.open(&file(&whole, &[])).is_ok() || family == "text",
            "{family}: {:?}",
            desk.open(&file(&whole, &[]))
        );
        for at in 0..whole.len() {
            let with = |tensor: Stored| {
                let mut tensors = whole.clone();
                tensors[at] = tensor;
                file(&tensors, &[])
            };
            let own = whole[at].clone();
            for shape in shapes {
                let _ = desk.open(&with(Stored::f32(&own.name, shape, 0.5)));
            }
            for (dtype, bits) in dtypes {
                let _ = desk.open(&with(own.as_dtype(dtype, bits)));
            }
            for value in [0.0, f32::NAN, f32::INFINITY, f32::MAX, -1e-40] {
                let opened = desk.open(&with(Stored::f32(&own.name, &own.shape, value)));
                assert!(value.is_finite() || opened.is_err(), "{family}, {}: {value}", own.name);
            }
            // Without it, and twice under names of one layer.
            let mut halves = whole.clone();
            halves.remove(at);
            let _ = desk.open(&file(&halves, &[]));
            let mut twice = whole.clone();
            let name = own
                .name
                .replace("unet_", "unet__")
                .replace("base_model", "module.base_model");
            twice.push(Stored { name, ..own.clone() });
            let _ = desk.open(&file(&twice, &[]));
            // Other names.
            for name in [
                "",
                ".",
                "..",
                "lora_A.weight",
                "transformer.",
                "lora_unet_.alpha",
                "\u{0}\u{1b}[31m",
                "é.alpha",
            ] {
                let mut tensors = whole.clone();
                tensors[at].name = name.to_owned();
                let _ = desk.open(&file(&tensors, &[]));
            }
            for index in ["99999999999999999999999", "-1", "00", "0x0", "{}"] {
                let mut tensors = whole.clone();
                tensors[at].name = own.name.replace('0', index);
                let _ = desk.open(&file(&tensors, &[]));
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let desk = Desk::new();
    for (family, whole) in families() {
        let bytes = file(&whole, &[("lora_adapter_metadata", "")]);
        for len in (0..bytes.len()).step_by(7) {
            assert!(desk.open(&bytes[..len]).is_err(), "{family}, {len} of {}", bytes.len());
        }
    }
}

#[test]
fn metadata_of_any_kind_is_read_or_named_in_an_error() {
    let desk = Desk::new();
    let config = desk.folder.path().join("adapter_config.json");
    let values = [
        "",
        " ",
        "null",
        "{}",
        "[]",
        "0",
        "true",
        "\"\"",
        "{",
        "NaN",
        "\u{feff}{}",
        "é",
        "{\"r\": 0}",
        "{\"r\": -1}",
        "{\"lora_alpha\": \"8\"}",
        "{\"lora_alpha\": -1e308, \"use_rslora\": 1}",
        "{\"alpha_pattern\": {\"\": 1}}",
        "{\"alpha_pattern\": {\"^\": 1e39}}",
        "{\"transformer.use_dora\": true}",
        "1e999",
        "None",
        "\u{1b}[2J",
    ];
    let mut refused = 0;
    for (_, whole) in families() {
        for value in values {
            for key in [
                "lora_adapter_metadata",
                "network_alpha",
                "ss_network_args",
                "format",
                "",
            ] {
                let opened = desk.open(&file(&whole, &[(key, value)]));
                refused += usize::from(matches!(
                    opened,
                    Err(Error::Checkpoint {
                        source: CheckpointError::Lora { .. },
                        ..
                    })
                ));
            }
            std::fs::write(&config, value).unwrap();
            let _ = desk.open(&file(&whole, &[]));
            std::fs::remove_file(&config).unwrap();
        }
    }
    assert!(refused > 100, "{refused}");
}

/// Returns the most memory that the process has held, in bytes.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1000
}

#[test]
#[cfg(target_os = "linux")]
fn memory_and_time_stay_in_proportion_to_the_file() {
    let desk = Desk::new();
    let _ = desk.open(&file(&families()[5].1, &[]));
    let (before, begin) = (peak(), std::time::Instant::now());
    // Vectors whose product would have 900 million elements.
    let long = |name: &str, shape: &[u64]| Stored::f32(&format!("lycoris_x_embedder.{name}"), shape, 0.5);
    for names in [
        ["lokr_w1_a", "lokr_w1_b", "lokr_w2"],
        ["lokr_w2_a", "lokr_w2_b", "lokr_w1"],
    ] {
        let tensors = [
            long(names[0], &[30_000, 1]),
            long(names[1], &[1, 30_000]),
            long(names[2], &[1, 1]),
        ];
        assert!(desk.open(&file(&tensors, &[])).is_err());
    }
    let wide = [long("lora_A.weight", &[1, 30_000]), long("lora_B.weight", &[30_000, 1])];
    assert!(desk.open(&file(&wide, &[])).is_err());
    // Thousands of tensors that match nothing, with long names.
    let tail = "attn_to_q_".repeat(40);
    let strange = |index: u32| Stored::f32(&format!("lora_unet_transformer_blocks_{index}_{tail}.alpha"), &[], 1.0);
    let many: Vec<Stored> = (0..5000).map(strange).collect();
    assert!(desk.open(&file(&many, &[])).is_err());
    let name = format!("lora_unet_double_blocks_{}_img_mod_lin.alpha", "9".repeat(1_000_000));
    assert!(desk.open(&file(&[Stored::f32(&name, &[], 1.0)], &[])).is_err());
    let grown = peak().saturating_sub(before);
    assert!(grown < 300_000_000, "{grown} bytes more");
    let took = begin.elapsed();
    assert!(took.as_secs() < 60, "{took:?}");
}
