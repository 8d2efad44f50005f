//! Test of the loader against the tensor names and sizes of the published FLUX.1 checkpoints.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::collections::BTreeSet;
use std::path::PathBuf;

use kontext_dit::{Dit, DitConfig, names};
use kontext_nn::Weights;

#[test]
fn every_official_tensor_is_expected_and_none_is_left_over() {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/assets/flux1-layout");
    for (model, config) in [
        ("FLUX.1-dev", DitConfig::kontext_dev()),
        ("FLUX.1-schnell", DitConfig::schnell()),
    ] {
        let folder = shared.join(model).join("transformer");
        let index = folder.join("diffusion_pytorch_model.safetensors.index.json");
        let Ok(text) = std::fs::read_to_string(&index) else {
            println!("skipped: {} is not here", index.display());
            return;
        };
        assert_eq!(DitConfig::from_json(folder.join("config.json")).unwrap(), config);
        let index: serde_json::Value = serde_json::from_str(&text).unwrap();
        let official: BTreeSet<String> = index["weight_map"].as_object().unwrap().keys().cloned().collect();

        let blank = Weights::blank();
        Dit::new(&blank, &config, |_| ()).unwrap();
        let shapes = blank.shapes();
        let ours: BTreeSet<String> = shapes
            .keys()
            .flat_map(|n| names::diffusers(n).names().to_vec())
            .collect();
        assert_eq!(
            ours.difference(&official).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "not in {model}"
        );
        assert_eq!(
            official.difference(&ours).collect::<Vec<_>>(),
            Vec::<&String>::new(),
            "left over in {model}"
        );
        let bytes: i64 = shapes.values().map(|s| 2 * s.iter().product::<i64>()).sum();
        assert_eq!(
            Some(bytes),
            index["metadata"]["total_size"].as_i64(),
            "bytes of {model} in bf16"
        );
    }
}
