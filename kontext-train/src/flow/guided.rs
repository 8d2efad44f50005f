//! The velocity that guidance distillation learns: the teacher's under classifier-free guidance.

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_sampler::guidance::combine;

use super::step::NoisyBatch;
use super::trained::Trained;
use crate::objective::GuidedObjective;
use crate::pass::prepare_with;

/// Returns the teacher's velocity [B, L, C] in f32 at the guidance of the batch.
pub(crate) fn teachers_velocity(trained: &Trained, objective: &GuidedObjective, noisy: &NoisyBatch) -> Result<Tensor> {
    let NoisyBatch {
        batch,
        sigmas,
        noisy_target,
        ..
    } = noisy;
    let negative = noisy.negative.as_ref();
    let negative = negative.ok_or_else(|| Error::bug("a guided objective without the empty prompt"))?;
    trained.with_teacher(|dit| {
        tch::no_grad(|| {
            let velocity = |conditioning| {
                let run = prepare_with(dit, batch, conditioning, sigmas, objective.teacher_guidance)?;
                dit.forward(&run, 0, noisy_target)
            };
            let guided = combine(&velocity(&batch.conditioning)?, &velocity(negative)?, noisy.guidance)?;
            Ok(guided.f_to_kind(Kind::Float)?)
        })
    })
}
