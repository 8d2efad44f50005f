//! Prefixes of tensor names in LoRA files: the writer's family, and the models that the rest of a name can be
//! of.

use crate::family::LoraFamily;
use crate::table::LoraTarget;

/// Prefixes of names; the rest of the name is a layer of one of these targets. A dash counts as an underscore.
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
        let length = match PREFIXES.iter().find(|(start, ..)| starts_with(rest, start)) {
            Some((start, writer, allowed)) => {
                family = family.or(Some(*writer));
                targets = intersection(targets, allowed);
                start.len()
            }
            None if rest.starts_with(WRAPPER) => WRAPPER.len(),
            None => break,
        };
        let (start, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        text.push_str(start);
        rest = after;
    }
    Prefix {
        family,
        targets,
        text,
        rest: rest.to_owned(),
    }
}

/// Returns `true` if a name starts with a prefix, in which dashes and underscores are equal.
fn starts_with(name: &str, prefix: &str) -> bool {
    let same = |(a, b): (u8, u8)| a == b || a == b'-' && b == b'_';
    name.len() >= prefix.len() && name.bytes().zip(prefix.bytes()).all(same)
}

/// Returns the targets that two prefixes of one name have in common: one after `text_encoder.` widens nothing.
fn intersection(before: &'static [LoraTarget], after: &'static [LoraTarget]) -> &'static [LoraTarget] {
    if after.iter().all(|target| before.contains(target)) {
        after
    } else if before.iter().all(|target| after.contains(target)) {
        before
    } else {
        &[]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_prefix_narrows_the_models_that_a_name_can_be_of() {
        for (name, targets) in [
            ("base_model.model.a", ANY),
            ("text_encoder.base_model.model.a", &[LoraTarget::Clip]),
            ("text_encoder_2.base_model.model.a", &[LoraTarget::T5]),
            ("base_model.model.text_encoder.a", &[LoraTarget::Clip]),
            ("text_encoder.transformer.a", &[]),
        ] {
            let prefix = of(name);
            assert_eq!((prefix.targets, prefix.rest.as_str()), (targets, "a"), "{name}");
        }
    }

    #[test]
    fn dashes_of_a_prefix_are_underscores() {
        for (name, family) in [
            ("lora-unet-double", LoraFamily::Kohya),
            ("lora_te1-double", LoraFamily::Kohya),
            ("lora-transformer-double", LoraFamily::OneTrainer),
            ("lycoris-double", LoraFamily::Lycoris),
            ("text-encoder.double", LoraFamily::Diffusers),
        ] {
            let prefix = of(name);
            assert_eq!(
                (prefix.family, prefix.rest.as_str()),
                (Some(family), "double"),
                "{name}"
            );
        }
        assert_eq!(of("transformer_blocks-3").family, None);
    }
}
