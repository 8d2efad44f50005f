//! What a training step is made of, before the model is asked.

use kontext_core::{Kind, Result, Tensor, noise};
use kontext_sampler::Shift;
use rand::RngExt;

use crate::dataset::{Batch, Order, Store};
use crate::random::{Stream, generator, happens};
use crate::{Objective, add_noise};

/// A batch with its noise: everything random about a step.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) batch: Batch,
    /// The noise level of each item.
    pub(crate) sigmas: Vec<f64>,
    /// [B, L, 4 C].
    pub(crate) noise: Tensor,
    /// The noisy targets [B, L, 4 C].
    pub(crate) noisy: Tensor,
}

/// The batch of micro step `index`, with prompts and reference pictures dropped at random.
///
/// Returns `None` where there is no data.
pub(crate) fn training(
    store: &Store,
    order: &mut Order,
    objective: &Objective,
    shift: Shift,
    seed: u64,
    index: u64,
) -> Result<Option<Prepared>> {
    let Some(part) = order.batch(index) else {
        return Ok(None);
    };
    let mut rng = generator(seed, Stream::Step, index);
    let unprompted: Vec<usize> = (0..part.items.len())
        .filter(|_| happens(&mut rng, objective.drop_prompt))
        .collect();
    let mut batch = store.batch(&part.items, &unprompted)?;
    if happens(&mut rng, objective.drop_context) {
        batch.context = None;
    }
    prepare(batch, objective, shift, &mut rng).map(Some)
}

/// The `index`-th batch of held-out items: the same noise levels and noise at every validation.
pub(crate) fn validation(
    store: &Store,
    items: &[usize],
    objective: &Objective,
    shift: Shift,
    seed: u64,
    index: u64,
) -> Result<Prepared> {
    prepare(
        store.batch(items, &[])?,
        objective,
        shift,
        &mut generator(seed, Stream::Validation, index),
    )
}

fn prepare(batch: Batch, objective: &Objective, shift: Shift, rng: &mut impl rand::Rng) -> Result<Prepared> {
    let sigmas = objective.draw(rng, batch.items.len(), batch.bucket.target.tokens(), shift);
    let shape = batch.target.size();
    // Drawn in f32 on the CPU, so that a run has the same noise on every device.
    let noise =
        noise::randn(&shape, rng.random(), Kind::Float, batch.target.device())?.f_to_kind(batch.target.kind())?;
    let noisy = add_noise(&batch.target, &noise, &sigmas)?;
    Ok(Prepared {
        batch,
        sigmas,
        noise,
        noisy,
    })
}
