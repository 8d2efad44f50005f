//! Prefixes of tensor names in LoRA files: the writer's family, and the models that the rest of a name can be
//! of.

use crate::family::LoraFamily;
use crate::table::LoraTarget;

/// Prefixes of names; the rest of the name is a layer of one of these targets.
const PREFIXES: &[(&str, LoraFamily, &[LoraTarget])] = {
    use LoraFamily::{ComfyUi, Diffusers, Fal, Kohya, Lycoris, OldDiffusers, OneTrainer};
    use LoraTarget::{Clip, T5, Transformer};
    &[
        ("base_model.model.", Fal, ANY),
        ("model.diffusion_model.", ComfyUi, &[Transformer]),
        ("diffusion_model.", ComfyUi, &[Transformer]),
        ("text_encoders.clip_l.transformer.", ComfyUi, &[Clip]),
        ("text_encoders.t5xxl.transformer.", ComfyUi, &[T5]),
        ("transformer.", Diffusers, &[Transformer]),
        ("text_encoder.", Diffusers, &[Clip]),
        ("text_encoder_2.", Diffusers, &[T5]),
        ("unet.", OldDiffusers, &[Transformer]),
        ("lora_unet_", Kohya, &[Transformer]),
        ("lora_unet-", Kohya, &[Transformer]),
        ("lora_transformer_", OneTrainer, &[Transformer]),
        ("lora_te_", Kohya, &[Clip]),
        ("lora_te1_", Kohya, &[Clip]),
        // OneTrainer numbers FLUX.1's encoders, kohya those of SD3.
        ("lora_te2_", OneTrainer, &[T5]),
        ("lora_te3_", Kohya, &[T5]),
        ("clip_l.", OneTrainer, &[Clip]),
        ("t5.", OneTrainer, &[T5]),
        ("lycoris_", Lycoris, ANY),
    ]
};
const ANY: &[LoraTarget] = &[LoraTarget::Transformer, LoraTarget::Clip, LoraTarget::T5];
/// Names that torch's wrapper of a module for several devices puts before those of its parameters.
const WRAPPER: &str = "module.";
/// The same, of a compiled module; also in the middle of a name.
const COMPILED: &str = "_orig_mod.";
/// Longest chain of prefixes: PEFT's and a wrapper's may precede another one.
const CHAIN: usize = 4;

/// The prefixes of a name, and the rest of it.
#[derive(Debug)]
pub(super) struct Prefix {
    /// The family that the first prefix belongs to.
    pub(super) family: Option<LoraFamily>,
    /// Models that the rest can be of a layer of.
    pub(super) targets: &'static [LoraTarget],
    pub(super) text: String,
    pub(super) rest: String,
}

/// Cuts the prefixes off a layer's name.
pub(super) fn of(name: &str) -> Prefix {
    let plain = name.replace(COMPILED, "");
    let mut rest = plain.as_str();
    let (mut family, mut targets, mut text) = (None, ANY, String::new());
    for _ in 0..CHAIN {
        let start = match PREFIXES.iter().find(|(start, ..)| rest.starts_with(start)) {
            Some((start, writer, allowed)) => {
                (family, targets) = (family.or(Some(*writer)), *allowed);
                *start
            }
            None if rest.starts_with(WRAPPER) => WRAPPER,
            None => break,
        };
        text.push_str(start);
        rest = rest.get(start.len()..).unwrap_or_default();
    }
    Prefix {
        family,
        targets,
        text,
        rest: rest.to_owned(),
    }
}
