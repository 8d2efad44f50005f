//! Tensor names of autoencoder files, and the maps between them.
//!
//! Layers request tensors by the names of today's diffusers. A [`NameMap`] translates those to the names of a
//! file; every map accepts any prefix (`first_stage_model.` or `vae.` in files that contain more than the
//! autoencoder).
//!
//! Source: huggingface/diffusers v0.38 loaders/single_file_utils.py, convert_ldm_vae_checkpoint;
//! models/modeling_utils.py, _convert_deprecated_attention_blocks.

use kontext_core::{CheckpointError, Error, Result};
use kontext_formats::{NameMap, TensorMap, prefix_before};
use kontext_nn::Weights;

/// Naming scheme of an autoencoder's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Naming {
    /// Names of diffusers' AutoencoderKL: `encoder.down_blocks.0.resnets.0.conv1.weight`.
    Diffusers,
    /// Names of diffusers before 0.17: the attention layers are `query`, `key`, `value` and `proj_attn`.
    DiffusersOld,
    /// Names of black-forest-labs/flux, latent-diffusion and ComfyUI: `encoder.down.0.block.0.conv1.weight`.
    Ldm,
    /// Names of diffusers' AutoencoderTiny: `encoder.layers.0.weight`.
    Tiny,
}

/// Tensor names that identify a naming; the more specific first.
const SIGNS: [(Naming, &str); 4] = [
    (Naming::DiffusersOld, "encoder.mid_block.attentions.0.query.weight"),
    (Naming::Diffusers, "encoder.down_blocks.0.resnets.0.conv1.weight"),
    (Naming::Ldm, "encoder.down.0.block.0.conv1.weight"),
    (Naming::Tiny, "encoder.layers.0.weight"),
];

impl Naming {
    /// Detects the naming of a file and the prefix of the autoencoder's names in it (often empty).
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file contains no autoencoder known to this crate.
    pub fn of(weights: &Weights) -> Result<(Self, String)> {
        let names = weights.names();
        for (naming, sign) in SIGNS {
            if let Some(prefix) = prefix_before(&names, sign) {
                return Ok((naming, prefix.to_owned()));
            }
        }
        let looked = SIGNS.map(|(_, sign)| sign).join(", ");
        Err(Error::checkpoint(weights.path())(CheckpointError::MissingPart {
            part: "autoencoder",
            looked,
            found: Vec::new(),
        }))
    }

    /// Returns the map from requested names to those of the file.
    #[must_use]
    pub fn map(self) -> NameMap {
        match self {
            Naming::Diffusers | Naming::Tiny => |name| TensorMap::Name(name.to_owned()),
            Naming::DiffusersOld => old_diffusers,
            Naming::Ldm => ldm,
        }
    }
}

/// Translates a name of today's diffusers to the one before 0.17.
pub fn old_diffusers(name: &str) -> TensorMap {
    const LAYERS: [(&str, &str); 4] = [
        (".to_q.", ".query."),
        (".to_k.", ".key."),
        (".to_v.", ".value."),
        (".to_out.0.", ".proj_attn."),
    ];
    let renamed = LAYERS
        .iter()
        .find(|(new, _)| name.contains(new))
        .map(|(new, old)| name.replace(new, old));
    TensorMap::Name(renamed.unwrap_or_else(|| name.to_owned()))
}

/// Translates a name of today's diffusers to that of black-forest-labs/flux and latent-diffusion.
///
/// # Example
/// ```
/// use kontext_vae::names::ldm;
/// let name = ldm("decoder.up_blocks.0.resnets.1.conv1.weight");
/// assert_eq!(name.names(), ["decoder.up.3.block.1.conv1.weight"]);
/// ```
pub fn ldm(name: &str) -> TensorMap {
    let start = ["encoder.", "decoder."].iter().find_map(|side| name.find(side));
    let (prefix, name) = name.split_at(start.unwrap_or_default());
    let parts: Vec<&str> = name.split('.').collect();
    let renamed = match parts.as_slice() {
        [side, "down_blocks", i, "resnets", j, rest @ ..] => format!("{side}.down.{i}.block.{j}.{}", resnet(rest)),
        [side, "down_blocks", i, "downsamplers", _, rest @ ..] => {
            format!("{side}.down.{i}.downsample.{}", rest.join("."))
        }
        [side, "up_blocks", i, "resnets", j, rest @ ..] => {
            format!("{side}.up.{}.block.{j}.{}", mirrored(i), resnet(rest))
        }
        [side, "up_blocks", i, "upsamplers", _, rest @ ..] => {
            format!("{side}.up.{}.upsample.{}", mirrored(i), rest.join("."))
        }
        [side, "mid_block", "resnets", j, rest @ ..] => format!("{side}.mid.block_{}.{}", from_one(j), resnet(rest)),
        [side, "mid_block", "attentions", _, rest @ ..] => format!("{side}.mid.attn_1.{}", attention(rest)),
        [side, "conv_norm_out", rest @ ..] => format!("{side}.norm_out.{}", rest.join(".")),
        _ => name.to_owned(),
    };
    TensorMap::Name(format!("{prefix}{renamed}"))
}

fn resnet(rest: &[&str]) -> String {
    rest.join(".").replace("conv_shortcut", "nin_shortcut")
}

fn attention(rest: &[&str]) -> String {
    let layer = match rest {
        ["group_norm", ..] => "norm",
        ["to_out", ..] => "proj_out",
        [layer, ..] => layer.trim_start_matches("to_"),
        [] => "",
    };
    format!("{layer}.{}", rest.last().unwrap_or(&""))
}

/// Converts the index of a decoder level: one naming counts from the largest image, the other from the
/// smallest.
fn mirrored(level: &str) -> i64 {
    3 - level.parse::<i64>().unwrap_or_default()
}

fn from_one(index: &str) -> i64 {
    index.parse::<i64>().unwrap_or_default() + 1
}

#[cfg(test)]
mod tests {
    use kontext_core::Tensor;

    use super::*;

    #[test]
    fn names_of_black_forest_labs_stand_where_they_should() {
        for (diffusers, expected) in [
            ("encoder.conv_in.weight", "encoder.conv_in.weight"),
            (
                "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
                "encoder.down.1.block.0.nin_shortcut.bias",
            ),
            (
                "encoder.down_blocks.2.downsamplers.0.conv.weight",
                "encoder.down.2.downsample.conv.weight",
            ),
            (
                "encoder.mid_block.resnets.0.norm1.weight",
                "encoder.mid.block_1.norm1.weight",
            ),
            (
                "encoder.mid_block.attentions.0.group_norm.bias",
                "encoder.mid.attn_1.norm.bias",
            ),
            (
                "encoder.mid_block.attentions.0.to_q.weight",
                "encoder.mid.attn_1.q.weight",
            ),
            (
                "decoder.mid_block.attentions.0.to_out.0.weight",
                "decoder.mid.attn_1.proj_out.weight",
            ),
            (
                "decoder.up_blocks.0.upsamplers.0.conv.bias",
                "decoder.up.3.upsample.conv.bias",
            ),
            (
                "decoder.up_blocks.3.resnets.2.norm2.weight",
                "decoder.up.0.block.2.norm2.weight",
            ),
            ("vae.decoder.conv_norm_out.weight", "vae.decoder.norm_out.weight"),
            (
                "first_stage_model.post_quant_conv.bias",
                "first_stage_model.post_quant_conv.bias",
            ),
        ] {
            assert_eq!(ldm(diffusers).names(), [expected]);
        }
    }

    #[test]
    fn the_attention_of_old_diffusers_files_is_found() {
        let name = old_diffusers("encoder.mid_block.attentions.0.to_out.0.bias");
        assert_eq!(name.names(), ["encoder.mid_block.attentions.0.proj_attn.bias"]);
        let other = "encoder.mid_block.attentions.0.group_norm.bias";
        assert_eq!(old_diffusers(other).names(), [other]);
    }

    #[test]
    fn an_autoencoder_inside_a_larger_file_is_found_with_its_prefix() {
        let file = |names: &[&str]| {
            Weights::from_tensors(names.iter().map(|n| ((*n).to_owned(), Tensor::from_slice(&[0.0_f32]))))
        };
        let whole = file(&[
            "model.diffusion_model.img_in.bias",
            "vae.encoder.down.0.block.0.conv1.weight",
        ]);
        assert_eq!(Naming::of(&whole).unwrap(), (Naming::Ldm, "vae.".to_owned()));
        let error = Naming::of(&file(&["img_in.bias"])).unwrap_err();
        assert!(
            std::error::Error::source(&error)
                .unwrap()
                .to_string()
                .starts_with("no autoencoder found")
        );
    }
}
