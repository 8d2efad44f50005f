//! Configuration of a transformer from the shapes of its tensors.

use kontext_core::{Error, Result};
use kontext_nn::Weights;

use crate::{DitConfig, names};

impl DitConfig {
    /// Infers the sizes from the tensor shapes of a single file in the naming of BFL or of diffusers.
    ///
    /// Shapes do not determine the axes: a head of width D is split into D/8, 7D/16, 7D/16 (16, 56, 56 at
    /// 128).
    ///
    /// # Errors
    /// A checkpoint error if a required tensor is missing.
    pub fn infer(weights: &Weights) -> Result<Self> {
        let path = weights.path();
        let diffusers = weights.shape_of("img_in.weight").is_none() && weights.shape_of("x_embedder.weight").is_some();
        let in_file = |name: &str| {
            let map = names::diffusers(name);
            if diffusers {
                map.names().to_vec()
            } else {
                vec![name.to_owned()]
            }
        };
        // Of the tensors asked for, only the fused projection of a single block is several in diffusers' files; its
        // rows add up.
        let size = |name: &str, axis: usize| {
            let mut total = 0;
            for name in in_file(name) {
                let Some(shape) = weights.shape_of(&name) else {
                    let reason = format!(
                        "no tensor `{name}` to infer the transformer's sizes from; the file is incomplete or of \
                         another model, fetch the right one"
                    );
                    return Err(Error::config(path, reason));
                };
                let size = shape.get(axis).copied().ok_or_else(|| {
                    Error::config(
                        path,
                        format!("tensor `{name}` has shape {shape:?}, expected a matrix; fetch the file again"),
                    )
                })?;
                total = if axis == 0 { size + total } else { size };
            }
            Ok(total)
        };
        let count = |prefix: &str| {
            let names = weights.names();
            let index = |n: &String| n.strip_prefix(prefix)?.split('.').next()?.parse::<i64>().ok();
            names
                .iter()
                .filter_map(index)
                .max()
                .map_or(0, |last| last.saturating_add(1))
        };
        let [double, single] = if diffusers {
            ["transformer_blocks.", "single_transformer_blocks."]
        } else {
            ["double_blocks.", "single_blocks."]
        };
        let (width, in_channels) = (size("img_in.weight", 0)?, size("img_in.weight", 1)?);
        let double_blocks = count(double);
        let norm = if double_blocks > 0 {
            "double_blocks.0.img_attn.norm.query_norm.scale"
        } else {
            "single_blocks.0.norm.query_norm.scale"
        };
        let head_dim = size(norm, 0)?.max(1);
        let mlp_width = if double_blocks > 0 {
            size("double_blocks.0.img_mlp.0.weight", 0)?
        } else {
            size("single_blocks.0.linear1.weight", 0)?.saturating_sub(width.saturating_mul(3))
        };
        let guidance = in_file("guidance_in.in_layer.weight");
        let config = Self {
            in_channels,
            out_channels: size("final_layer.linear.weight", 0)?,
            heads: width / head_dim,
            head_dim,
            axes_dim: [
                head_dim / 8,
                head_dim.saturating_mul(7) / 16,
                head_dim.saturating_mul(7) / 16,
            ],
            mlp_width,
            double_blocks,
            single_blocks: count(single),
            context_dim: size("txt_in.weight", 1)?,
            pooled_dim: size("vector_in.in_layer.weight", 1)?,
            guidance_embed: guidance.iter().all(|name| weights.shape_of(name).is_some()),
        };
        config.validate().map_err(Error::in_config(path))?;
        Ok(config)
    }
}
