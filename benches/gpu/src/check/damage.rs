//! Damaged weights: the error must name the stage and the tensor.

use kontext::{Error, Kind, Layout, Weights, random_model};

use super::world::{World, edit};
use crate::row::Outcome;
use crate::suite::Case;

const DAMAGED: &str = "single_blocks.1.linear2.weight";

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    vec![Case::new("damage/a NaN in the weights", move || not_a_number(world))]
}

fn not_a_number(world: &World) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    random_model(folder.path(), 7, Layout::SingleFiles)?;
    let path = folder.path().join("flux1-kontext.safetensors");
    let weights = Weights::open(&path)?;
    let tensors = weights.names().into_iter().map(|name| {
        let tensor = weights.raw(&name)?;
        if name == DAMAGED {
            let _ = tensor.f_get(3)?.f_get(5)?.f_fill_(f64::NAN)?;
        }
        Ok((name, tensor))
    });
    let tensors = tensors.collect::<kontext::Result<Vec<_>>>()?;
    drop(weights);
    kontext_formats::save(&path, &tensors, None)?;
    let pipe = World::builder(world.device, Kind::BFloat16).load(folder.path())?;
    let mut outcome = Outcome::default();
    let error = pipe.run(&edit()).err();
    let told = error
        .as_ref()
        .map_or_else(|| "no error".to_owned(), ToString::to_string);
    outcome.holds(matches!(error, Some(Error::NotFinite { .. })), || told.clone());
    outcome.holds(told.contains("denoising step 1") && told.contains(DAMAGED), || {
        format!("stage or tensor missing: {told}")
    });
    Ok(outcome)
}
