//! Linear layers of the transformer, by this library's names and by diffusers'.

use kontext_core::Result;
use kontext_formats::TensorMap;
use kontext_nn::Weights;

use crate::{Dit, DitConfig, names};

/// A linear layer of diffusers: a whole layer here, or some rows of a fused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearPart {
    /// BFL's name of the layer that contains it: `double_blocks.0.img_attn.qkv`.
    pub layer: String,
    /// diffusers' name: `transformer_blocks.0.attn.to_q`.
    pub module: String,
    /// First row in the layer.
    pub start: i64,
    /// Number of rows: output features.
    pub rows: i64,
    /// Input features.
    pub input: i64,
    /// If set, diffusers has the two halves of the rows swapped.
    pub swapped: bool,
}

/// Returns all linear layers of a transformer, split as in diffusers.
///
/// # Errors
/// Those of [`DitConfig::validate`].
///
/// # Example
/// ```
/// use kontext_dit::{DitConfig, linear_parts};
/// let parts = linear_parts(&DitConfig::kontext_dev())?;
/// let key = parts.iter().find(|part| part.module == "transformer_blocks.18.attn.to_k").unwrap();
/// assert_eq!((key.layer.as_str(), key.start, key.rows), ("double_blocks.18.img_attn.qkv", 3072, 3072));
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn linear_parts(config: &DitConfig) -> Result<Vec<LinearPart>> {
    let blank = Weights::blank();
    Dit::new(&blank, config, |_| ())?;
    let mut parts = Vec::new();
    for (name, shape) in blank.shapes() {
        let (Some(layer), [rows, input]) = (name.strip_suffix(".weight"), shape.as_slice()) else {
            continue;
        };
        let recipe = names::diffusers(&name);
        let swapped = matches!(recipe, TensorMap::SwapHalves(_));
        let count = recipe.names().len() as i64;
        let mut start = 0;
        for module in recipe.names() {
            let module = module.trim_end_matches(".weight").to_owned();
            // All parts of a fused layer have the model's width, except the MLP next to the attention.
            let rows = match count {
                1 => *rows,
                _ if module.ends_with("proj_mlp") => rows - start,
                _ => config.width(),
            };
            parts.push(LinearPart {
                layer: layer.to_owned(),
                module,
                start,
                rows,
                input: *input,
                swapped,
            });
            start += rows;
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_their_layers() {
        let parts = linear_parts(&DitConfig {
            double_blocks: 1,
            single_blocks: 1,
            ..DitConfig::kontext_dev()
        })
        .unwrap();
        let spans = |layer: &str| -> Vec<(&str, i64, i64)> {
            parts
                .iter()
                .filter(|p| p.layer == layer)
                .map(|p| (p.module.as_str(), p.start, p.rows))
                .collect()
        };
        let single = "single_transformer_blocks.0";
        let expected = [
            ("attn.to_q", 0, 3072),
            ("attn.to_k", 3072, 3072),
            ("attn.to_v", 6144, 3072),
            ("proj_mlp", 9216, 12288),
        ];
        let expected = expected.map(|(part, start, rows)| (format!("{single}.{part}"), start, rows));
        assert!(
            spans("single_blocks.0.linear1")
                .into_iter()
                .eq(expected.iter().map(|(m, s, r)| (m.as_str(), *s, *r)))
        );
        assert_eq!(spans("final_layer.adaLN_modulation.1"), [("norm_out.linear", 0, 6144)]);
        assert_eq!(spans("img_in"), [("x_embedder", 0, 3072)]);
    }
}
