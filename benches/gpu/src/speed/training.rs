//! A training step of a LoRA with activation checkpointing.

use std::rc::Rc;

use kontext::Tensor;
use kontext_core::pattern::matches;
use kontext_dit::RunInput;
use kontext_nn::Adapters;
use kontext_train::{Activations, AdamW, AdamWConfig, FlowObjective, LoraMethod, add_noise, backward};

use super::shared::{Shared, WORKS};
use super::timing::timed;
use crate::adapters;
use crate::row::Outcome;
use crate::suite::Case;

const SIGMAS: [f64; 1] = [0.6];
const RATE: f64 = 1e-4;

pub(super) fn cases(shared: &Rc<Shared>) -> Vec<Case<'static>> {
    let shared = Rc::clone(shared);
    vec![Case::new("lora training step 1024/kontext, recomputed", move || {
        step(&shared)
    })]
}

/// Times forward, backward and the optimizer's step, for one image.
fn step(shared: &Shared) -> anyhow::Result<Outcome> {
    let parts = shared.parts()?;
    let (dit, method) = (&parts.dit, LoraMethod::default());
    let named = |layer: &str| method.targets.iter().any(|pattern| matches(pattern, layer));
    let params = adapters::set(dit, shared.device, method.rank, |part| {
        named(&part.layer) && !part.swapped
    })?;
    let mut optimizer = AdamW::new(&params, AdamWConfig::default())?;
    let [edit, ..] = WORKS;
    let entrance = shared.entrance(edit)?;
    let (image, noise) = (&entrance.target, shared.draw(&entrance.target.size(), 5)?);
    let noisy = add_noise(image, &noise, &SIGMAS)?;
    let objective = FlowObjective::default();
    let (mut outcome, mut loss) = (Outcome::default(), f64::NAN);
    let work = || -> anyhow::Result<()> {
        params.zero_grad();
        let run = dit.prepare_items(&RunInput {
            conditioning: &entrance.conditioning,
            target_ids: &entrance.target_ids,
            context: entrance.context.as_ref(),
            times: &SIGMAS.map(|sigma| (1000.0 * sigma) as f32),
            guidance: Some(1000.0),
        })?;
        let velocity_loss = |velocity: &Tensor| objective.loss(velocity, &noise, image, &SIGMAS);
        loss = backward(dit, &run, &noisy, Activations::Recomputed, 1.0, velocity_loss)?;
        optimizer.step(&params, &params.gradient()?, RATE)?;
        Ok(())
    };
    let result = timed(shared.device, &mut outcome, work);
    // Later cases use the parts without adapters.
    dit.slots().set(&Adapters::new())?;
    result?;
    outcome.value("trained values", params.count());
    outcome.holds(loss.is_finite(), || "the loss is not finite".to_owned());
    Ok(outcome)
}
