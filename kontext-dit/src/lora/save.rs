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
