//! Writing a LoRA, in the naming of diffusers and PEFT.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use kontext_core::weights;
use kontext_core::{Kind, Result, Tensor};

/// Writes a LoRA: for each of diffusers' layers `down` [rank, in] and `up` [rows, rank] in f32, whose
/// product is the whole change (strength 1, which every program takes where no `alpha` is given).
///
/// `facts` go into the header.
///
/// # Errors
/// [`kontext_core::Error::Io`] where the file cannot be written.
pub fn save_lora(
    path: impl AsRef<Path>,
    modules: &[(String, Tensor, Tensor)],
    facts: BTreeMap<String, String>,
) -> Result<()> {
    let mut tensors = Vec::with_capacity(2 * modules.len());
    for (module, down, up) in modules {
        tensors.push((format!("transformer.{module}.lora_A.weight"), down.f_to_kind(Kind::Float)?));
        tensors.push((format!("transformer.{module}.lora_B.weight"), up.f_to_kind(Kind::Float)?));
    }
    let mut text: HashMap<String, String> = facts.into_iter().collect();
    text.insert("format".to_owned(), "pt".to_owned());
    weights::save(path, &tensors, Some(text))
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;
    use crate::{DitConfig, Lora};

    #[test]
    fn what_is_saved_is_read_again_and_lands_on_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lora.safetensors");
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap();
        let module = "single_transformer_blocks.3.attn.to_v".to_owned();
        let facts = BTreeMap::from([("steps".to_owned(), "12".to_owned())]);
        save_lora(&path, &[(module, draw(&[2, 8], 1), draw(&[8, 2], 2))], facts).unwrap();
        let lora = Lora::open(&path).unwrap();
        assert_eq!((lora.len(), lora.facts()["steps"].as_str()), (1, "12"));
        let config =
            DitConfig { heads: 1, head_dim: 8, axes_dim: [4, 2, 2], mlp_width: 32, ..DitConfig::kontext_dev() };
        let adapters = lora.adapters(&config, |_| 1.0).unwrap();
        assert_eq!(adapters.layers().collect::<Vec<_>>(), ["single_blocks.3.linear1"]);
        assert_eq!(adapters.of("single_blocks.3.linear1")[0].rows(), 16..24);
    }
}
