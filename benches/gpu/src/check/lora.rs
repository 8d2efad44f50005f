//! LoRA adapters next to the weights, fused into them, scaled, and removed again.

use std::collections::BTreeMap;
use std::path::Path;

use kontext::{Device, Kind, LoraUse, Placement, Quantize};
use kontext_core::noise;
use kontext_dit::linear_parts;
use kontext_lora::{LoraLayer, save_lora};

use super::distance::{Bounds, Trace};
use super::runs;
use super::world::{KINDS, World, edit};
use crate::row::Outcome;
use crate::suite::Case;

const RANK: i64 = 4;
/// Standard deviation of each low-rank matrix: a run changes by a few percent.
const STRENGTH: f64 = 0.1;

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    for (prefix, kind) in KINDS {
        for (name, fused) in [("beside the weights", false), ("fused", true)] {
            cases.push(Case::new(format!("lora/{name}, {prefix}"), move || {
                used(world, kind, fused)
            }));
        }
    }
    cases.push(Case::new("lora/beside streamed Q4_0", move || streamed(world)));
    cases.push(Case::new("lora/scaled and removed", move || removed(world)));
    cases
}

/// Writes a LoRA for all linear layers of the random model.
fn write(world: &World, path: &Path) -> anyhow::Result<()> {
    let (_, config) = kontext::Checkpoint::find(world.model())?.open_transformer()?;
    let mut layers = Vec::new();
    for (index, part) in linear_parts(&config)?
        .into_iter()
        .filter(|part| !part.swapped)
        .enumerate()
    {
        let draw = |shape: &[i64], seed| noise::randn(shape, seed, Kind::Float, Device::Cpu);
        let down = draw(&[RANK, part.input], 2 * index as u64)?.f_mul_scalar(STRENGTH)?;
        let up = draw(&[part.rows, RANK], 2 * index as u64 + 1)?.f_mul_scalar(STRENGTH)?;
        layers.push(LoraLayer {
            module: part.module,
            down,
            up,
            magnitude: None,
        });
    }
    Ok(save_lora(path, &layers, BTreeMap::new())?)
}

fn used(world: &World, kind: Kind, fused: bool) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lora.safetensors");
    write(world, &file)?;
    let run = |device: Device| -> anyhow::Result<Trace> {
        Trace::of(
            &World::builder(device, kind)
                .lora(&file, 0.8)
                .fuse_loras(fused)
                .load(world.model())?,
            &edit(),
        )
    };
    let expected = world.expected(&format!("lora {kind:?} {fused}"), || run(Device::Cpu))?;
    let mut outcome = Outcome::default();
    run(world.device)?.compare(&expected, Bounds::of(kind), &mut outcome)?;
    let changes = expected.differs(&*runs::plain_edit(world, kind)?)?;
    outcome.holds(changes, || "the LoRA changes nothing".to_owned());
    Ok(outcome)
}

fn streamed(world: &World) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let (file, packed) = (folder.path().join("lora.safetensors"), folder.path().join("q4.gguf"));
    write(world, &file)?;
    super::forms::packed_file(world, Quantize::Q4_0, &packed)?;
    let run = |placement: Placement| -> anyhow::Result<Trace> {
        let builder = World::builder(world.device, Kind::BFloat16)
            .transformer(&packed)
            .lora(&file, 0.8);
        Trace::of(&builder.placement(placement).load(world.model())?, &edit())
    };
    let mut outcome = Outcome::default();
    run(Placement::Streamed)?.equal(&run(Placement::Resident)?, &mut outcome);
    Ok(outcome)
}

/// Checks that adding, scaling and removing a LoRA restores the previous results bit for bit.
fn removed(world: &World) -> anyhow::Result<Outcome> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("lora.safetensors");
    write(world, &file)?;
    let pipe = world.pipeline(Kind::BFloat16)?;
    let before = Trace::of(&pipe, &edit())?;
    let mut outcome = Outcome::default();
    pipe.add_lora(LoraUse::new(&file).named("all"))?;
    let changes = Trace::of(&pipe, &edit())?.differs(&before)?;
    outcome.holds(changes, || "the LoRA changes nothing".to_owned());
    pipe.set_lora_scale("all", 0.5)?;
    let half = Trace::of(&pipe, &edit())?;
    let loaded = World::builder(world.device, Kind::BFloat16)
        .lora(&file, 0.5)
        .load(world.model())?;
    half.equal(&Trace::of(&loaded, &edit())?, &mut outcome);
    pipe.remove_lora("all")?;
    Trace::of(&pipe, &edit())?.equal(&before, &mut outcome);
    Ok(outcome)
}
