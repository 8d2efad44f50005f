//! Mutated LoRA files: reading them, matching them with a model and preparing their adapters ends in a result
//! or in an error, never in a panic. `fuzz.rs` mutates the same files at random and measures their memory.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::{dit, families, inspect, lenient, prepare};
use kontext_core::{CheckpointError, Error, Result};
use kontext_dit::Dit;
use kontext_fixtures::{Part, described_file, safetensors_file};
use kontext_lora::Lora;
use serde_json::json;

/// A model, and a file to write to.
struct Desk {
    dit: Dit,
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { dit: dit(), folder }
    }

    /// Does all that a pipeline does with a file.
    fn open(&self, bytes: &[u8]) -> Result<()> {
        let path = self.folder.path().join("adapter_model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let _ = Lora::found_in(self.folder.path());
        let _ = inspect(&path);
        let (strict, lenient) = (Lora::open(&path), lenient(&path));
        if let Ok(lora) = &lenient {
            prepare(&self.dit, lora)?;
        }
        strict.and(lenient).map(drop)
    }
}

/// Returns the same bytes as another dtype, with a shape of one side.
fn as_dtype(part: &Part, dtype: &'static str, bits: u64) -> Part {
    let Part(name, _, own, bytes) = part.clone();
    let shape = if bits == 32 {
        own
    } else {
        vec![bytes.len() as u64 * 8 / bits]
    };
    Part(name, dtype, shape, bytes)
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
            desk.open(&safetensors_file(&whole)).is_ok() || family == "text",
            "{family}: {:?}",
            desk.open(&safetensors_file(&whole))
        );
        for at in 0..whole.len() {
            let with = |tensor: Part| {
                let mut tensors = whole.clone();
                tensors[at] = tensor;
                safetensors_file(&tensors)
            };
            let own = whole[at].clone();
            for shape in shapes {
                let _ = desk.open(&with(Part::filled(&own.0, shape, 0.5)));
            }
            for (dtype, bits) in dtypes {
                let _ = desk.open(&with(as_dtype(&own, dtype, bits)));
            }
            for value in [0.0, f32::NAN, f32::INFINITY, f32::MAX, -1e-40] {
                let opened = desk.open(&with(Part::filled(&own.0, &own.2, value)));
                assert!(value.is_finite() || opened.is_err(), "{family}, {}: {value}", own.0);
            }
            // Without it, and twice under names of one layer.
            let mut halves = whole.clone();
            halves.remove(at);
            let _ = desk.open(&safetensors_file(&halves));
            let mut twice = whole.clone();
            let name = own
                .0
                .replace("unet_", "unet__")
                .replace("base_model", "module.base_model");
            twice.push(Part(name, own.1, own.2.clone(), own.3.clone()));
            let _ = desk.open(&safetensors_file(&twice));
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
                name.clone_into(&mut tensors[at].0);
                let _ = desk.open(&safetensors_file(&tensors));
            }
            for index in ["99999999999999999999999", "-1", "00", "0x0", "{}"] {
                let mut tensors = whole.clone();
                tensors[at].0 = own.0.replace('0', index);
                let _ = desk.open(&safetensors_file(&tensors));
            }
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let desk = Desk::new();
    for (family, whole) in families() {
        let bytes = described_file(&whole, &json!({ "lora_adapter_metadata": "" }));
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
                let opened = desk.open(&described_file(&whole, &json!({ key: value })));
                refused += usize::from(matches!(
                    opened,
                    Err(Error::Checkpoint {
                        source: CheckpointError::Lora { .. },
                        ..
                    })
                ));
            }
            std::fs::write(&config, value).unwrap();
            let _ = desk.open(&safetensors_file(&whole));
            std::fs::remove_file(&config).unwrap();
        }
    }
    assert!(refused > 100, "{refused}");
}
