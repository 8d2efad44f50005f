//! Writing a LoRA file in the naming of diffusers and PEFT.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kontext_core::{Kind, Result, Tensor};

/// LoRA tensors of one layer, in diffusers' naming.
#[derive(Debug)]
pub struct LoraLayer {
    /// Name of the layer: `transformer_blocks.0.attn.to_q`.
    pub module: String,
    /// Down projection [rank, in].
    pub down: Tensor,
    /// Up projection [rows, rank].
    pub up: Tensor,
    /// DoRA magnitude: row norms of the adapted weight, `[rows]`; `None` for plain LoRA.
    pub magnitude: Option<Tensor>,
}

/// Writes a LoRA in f32. The weight difference is `up @ down`, unscaled: without an `alpha`, every program
/// uses a scale of 1.
///
/// `facts` are written to the header as metadata.
///
/// # Errors
/// [`kontext_core::Error::Io`] if the file cannot be written.
pub fn save_lora(path: impl AsRef<Path>, layers: &[LoraLayer], facts: BTreeMap<String, String>) -> Result<()> {
    let mut tensors = Vec::with_capacity(3 * layers.len());
    for LoraLayer {
        module,
        down,
        up,
        magnitude,
    } in layers
    {
        tensors.push((
            format!("transformer.{module}.lora_A.weight"),
            down.f_to_kind(Kind::Float)?,
        ));
        tensors.push((
            format!("transformer.{module}.lora_B.weight"),
            up.f_to_kind(Kind::Float)?,
        ));
        if let Some(magnitude) = magnitude {
            tensors.push((
                format!("transformer.{module}.lora_magnitude_vector"),
                magnitude.f_to_kind(Kind::Float)?,
            ));
        }
    }
    let mut text: HashMap<String, String> = facts.into_iter().collect();
    text.insert("format".to_owned(), "pt".to_owned());
    kontext_formats::save(path, &tensors, Some(text))
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};
    use kontext_dit::DitConfig;

    use super::*;
    use crate::{Lora, LoraForm};

    #[test]
    fn what_is_saved_is_read_again_and_lands_on_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        let module = "single_transformer_blocks.3.attn.to_v".to_owned();
        let facts = BTreeMap::from([("steps".to_owned(), "12".to_owned())]);
        let layer = LoraLayer {
            module,
            down: draw(&[2, 8], 1),
            up: draw(&[8, 2], 2),
            magnitude: Some(draw(&[8], 3)),
        };
        save_lora(&path, &[layer], facts).unwrap();
        let lora = Lora::open(&path).unwrap();
        assert_eq!(lora.report().forms.keys().collect::<Vec<_>>(), [&LoraForm::Dora]);
        assert_eq!((lora.len(), lora.facts()["steps"].as_str()), (1, "12"));
        let config = DitConfig {
            heads: 1,
            head_dim: 8,
            axes_dim: [4, 2, 2],
            mlp_width: 32,
            ..DitConfig::kontext_dev()
        };
        let adapters = lora.adapters(&config, |_| 1.0).unwrap();
        assert_eq!(adapters.layers().collect::<Vec<_>>(), ["single_blocks.3.linear1"]);
        assert_eq!(adapters.of("single_blocks.3.linear1")[0].rows(), 16..24);
    }
}
