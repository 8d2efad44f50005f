//! The model and the files of the tests of damaged files, and all that a pipeline does with one.
#![allow(dead_code, clippy::unwrap_used)] // In helper functions, of which each test uses some.

use std::path::Path;

use kontext_core::Result;
use kontext_dit::{Dit, DitConfig};
use kontext_fixtures::Part;
use kontext_lora::{Lora, LoraTarget};
use kontext_nn::Weights;

/// Returns the sizes of a tiny model: `img_in` is [8, 16], the queries of its double block are [8, 8].
pub(crate) fn config() -> DitConfig {
    DitConfig {
        in_channels: 16,
        out_channels: 16,
        heads: 1,
        head_dim: 8,
        axes_dim: [4, 2, 2],
        mlp_width: 32,
        double_blocks: 1,
        single_blocks: 1,
        context_dim: 8,
        pooled_dim: 8,
        guidance_embed: true,
    }
}

/// Returns a model of these sizes.
pub(crate) fn dit() -> Dit {
    Dit::new(&Weights::synthetic(1), &config(), |_| ()).unwrap()
}

/// Reports on a file. No name or text of it may drive a terminal.
pub(crate) fn inspect(path: &Path) -> Result<()> {
    let report = Lora::inspect(path)?.to_string();
    assert!(
        report.lines().all(|line| !line.contains(char::is_control)),
        "{report:?}"
    );
    Ok(())
}

/// Opens a file that may match in part only.
pub(crate) fn lenient(path: &Path) -> Result<Lora> {
    Lora::options().allow_unmatched("*").allow_no_effect().open(path)
}

/// Prepares a LoRA for the transformer and the text encoders.
pub(crate) fn prepare(dit: &Dit, lora: &Lora) -> Result<()> {
    let _set = dit.slots().prepare(&lora.adapters(&config(), |_| 0.5)?)?;
    for target in [LoraTarget::Clip, LoraTarget::T5] {
        lora.text_adapters(target, &dit.slots().sizes(), |_| 1.0)?;
    }
    Ok(())
}

/// Returns a file of each family that fits the model, but for that of a text encoder.
pub(crate) fn families() -> Vec<(&'static str, Vec<Part>)> {
    let layer = |module: &str, suffixes: &[(&str, &[u64])]| -> Vec<Part> {
        let tensor = |(suffix, shape): &(&str, &[u64])| Part::filled(&format!("{module}.{suffix}"), shape, 0.5);
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
