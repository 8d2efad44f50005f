//! Noise: drawn on the host, so that a seed gives the same image on every device.

use std::ops::ControlFlow;

use kontext::{Conformance, Device, Event, Kind, Request, Tensor};

use super::world::World;
use crate::row::Outcome;
use crate::suite::Case;

const MODES: [(&str, Conformance); 3] = [
    ("kontext", Conformance::Native),
    ("diffusers", Conformance::Diffusers),
    ("bfl", Conformance::Bfl),
];

pub(super) fn cases(world: &World) -> Vec<Case<'_>> {
    MODES
        .into_iter()
        .map(|(name, mode)| Case::new(format!("noise/{name}"), move || equal(world, mode)))
        .collect()
}

fn equal(world: &World, mode: Conformance) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    for kind in [Kind::Float, Kind::BFloat16] {
        let drawn = |device: Device| -> anyhow::Result<Tensor> {
            let pipe = World::builder(device, kind).load(world.model())?;
            let request = Request::generate("")
                .size(64, 48)
                .steps(1)
                .seed(11)
                .batch(2)
                .conform(mode);
            let mut noise = None;
            let run = pipe.run_with(&request, |event| match event {
                Event::Noise { latents } => {
                    noise = Some(latents.shallow_clone());
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Continue(()),
            });
            match (noise, run) {
                (Some(noise), _) => Ok(noise.f_to_device(Device::Cpu)?),
                (None, Err(error)) => Err(error.into()),
                (None, Ok(_)) => anyhow::bail!("a run without noise"),
            }
        };
        let (got, expected) = (drawn(world.device)?, drawn(Device::Cpu)?);
        outcome.holds(got.kind() == expected.kind(), || format!("{kind:?}: {:?}", got.kind()));
        outcome.holds(got.kind() == expected.kind() && got.equal(&expected), || {
            format!("other bits in a run in {kind:?}")
        });
    }
    Ok(outcome)
}
