//! The parts in a file of weights, by the names of its tensors, and where other programs keep them.

use kontext_core::ModelPart;
use kontext_formats::prefix_before;
use kontext_text::T5Encoder;

use super::other_model::other_model;

/// Tensor names that mark a transformer: BFL's and diffusers'.
pub(super) const TRANSFORMER_SIGNS: [&str; 2] = ["img_in.weight", "x_embedder.weight"];

/// A part, with its names in messages and in the layouts of other programs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) part: ModelPart,
    /// The name in messages.
    pub(super) name: &'static str,
    /// The folder in diffusers' layout.
    pub(super) folder: &'static str,
    /// The folders in ComfyUI's `models`.
    pub(super) comfy: &'static [&'static str],
    /// The method of the builder that names another path.
    pub(super) option: &'static str,
    /// Tensor names unique to the part, under any prefix.
    signs: &'static [&'static str],
}

pub(super) const TRANSFORMER: Place = Place {
    part: ModelPart::Transformer,
    name: "transformer",
    folder: "transformer",
    comfy: &["diffusion_models", "unet"],
    option: "transformer",
    signs: &TRANSFORMER_SIGNS,
};
pub(super) const VAE: Place = Place {
    part: ModelPart::Autoencoder,
    name: "VAE",
    folder: "vae",
    comfy: &["vae"],
    option: "vae",
    signs: &["decoder.conv_in.weight", "decoder.layers.0.weight"],
};
pub(super) const CLIP: Place = Place {
    part: ModelPart::Clip,
    name: "CLIP text encoder",
    folder: "text_encoder",
    comfy: &["text_encoders", "clip"],
    option: "clip",
    // With and without `text_model.` before it; CLIP's vision model has none.
    signs: &["embeddings.token_embedding.weight"],
};
pub(super) const T5: Place = Place {
    part: ModelPart::T5,
    name: "T5 text encoder",
    folder: "text_encoder_2",
    comfy: &["text_encoders", "clip"],
    option: "t5",
    signs: &[T5Encoder::SIGN, T5Encoder::GGUF_SIGN],
};
const ALL: [&Place; 4] = [&TRANSFORMER, &VAE, &CLIP, &T5];

/// Returns the parts of FLUX.1 in a file: one, or those of a whole model.
pub(super) fn parts(names: &[String]) -> Vec<ModelPart> {
    let present = |place: &&&Place| place.signs.iter().any(|sign| prefix_before(names, sign).is_some());
    let other = other_model(names);
    let parts = ALL.iter().filter(present).map(|place| place.part);
    parts
        .filter(|part| other.is_none_or(|other| other.part != *part))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(names: &[&str]) -> Vec<ModelPart> {
        parts(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn parts_are_told_apart_by_their_tensors() {
        let whole = [
            "model.diffusion_model.img_in.weight",
            "vae.decoder.conv_in.weight",
            "text_encoders.clip_l.transformer.text_model.embeddings.token_embedding.weight",
            "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q.weight",
        ];
        let all = [
            ModelPart::Transformer,
            ModelPart::Autoencoder,
            ModelPart::Clip,
            ModelPart::T5,
        ];
        assert_eq!(of(&whole), all);
        assert_eq!(of(&["embeddings.token_embedding.weight"]), [ModelPart::Clip]);
        // Prefixes end with a dot, and adapters have other suffixes.
        assert_eq!(of(&["audio_img_in.weight", "img_in.lora_A.weight"]), []);
    }

    #[test]
    fn parts_of_other_models_are_none_of_flux() {
        assert_eq!(of(&["img_in.weight", "distilled_guidance_layer.in_proj.weight"]), []);
        let umt5 = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight";
        assert_eq!(of(&["encoder.block.0.layer.0.SelfAttention.q.weight", umt5]), []);
        assert_eq!(
            of(&["decoder.conv_in.weight", "distilled_guidance_layer.in_proj.weight"]),
            [ModelPart::Autoencoder]
        );
    }
}
