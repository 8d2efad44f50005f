//! Settings of a run with several sources: the request, then the LoRAs, then the model's folder, then the conventions.

use kontext_lora::LoraDefaults;
use kontext_sampler::{Conformance, Sampler, Shift};

use super::ModelFacts;
use crate::{Request, Warning};

/// Default steps of a model without guidance, which was distilled to few.
const FEW_STEPS: usize = 4;

/// The settings of a run.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) steps: usize,
    pub(super) guidance: f64,
    pub(super) sampler: Sampler,
    pub(super) shift: Shift,
    /// The shift that the request or a LoRA sets.
    pub(super) own_shift: Option<f64>,
    /// Names of those that a LoRA decided.
    pub(super) by_loras: Vec<&'static str>,
    /// Those that LoRAs disagree about.
    pub(super) warnings: Vec<Warning>,
}

impl Chosen {
    pub(super) fn new(request: &Request, facts: &ModelFacts, loras: &[LoraDefaults]) -> Self {
        let mut loras = OfLoras {
            loras,
            decided: Vec::new(),
            warnings: Vec::new(),
        };
        let published = if facts.guidance_embed {
            request.conformance.default_steps()
        } else {
            FEW_STEPS
        };
        // Custom levels replace steps.
        let steps = if request.sigmas.is_some() {
            request.steps.or(Some(published))
        } else {
            loras.or(request.steps, "steps", |lora| lora.steps)
        };
        let first = request.guidance_schedule.iter().flat_map(|schedule| &schedule.values);
        let own_guidance = request.guidance.or(first.copied().next());
        let guidance = if facts.guidance_embed {
            loras.or(own_guidance, "guidance", |lora| lora.guidance)
        } else {
            own_guidance
        };
        let sampler = loras.or(request.sampler, "sampler", |lora| lora.sampler);
        let shift = if request.sigmas.is_some() && request.conformance != Conformance::Diffusers {
            None
        } else {
            loras.or(request.shift, "shift", |lora| lora.shift)
        };
        Self {
            steps: steps.or(facts.defaults.steps).unwrap_or(published),
            guidance: guidance
                .or(facts.defaults.guidance)
                .unwrap_or(request.conformance.default_guidance()),
            sampler: sampler.unwrap_or(facts.sampler),
            shift: shift.map_or(facts.shift, Shift::Fixed),
            own_shift: shift,
            by_loras: loras.decided,
            warnings: loras.warnings,
        }
    }
}

/// The settings that the LoRAs of a run ask for.
struct OfLoras<'a> {
    loras: &'a [LoraDefaults],
    decided: Vec<&'static str>,
    warnings: Vec<Warning>,
}

impl OfLoras<'_> {
    /// Returns the request's value, else that of the first LoRA with one.
    fn or<T: PartialEq>(
        &mut self,
        asked: Option<T>,
        setting: &'static str,
        of: impl Fn(&LoraDefaults) -> Option<T>,
    ) -> Option<T> {
        if asked.is_some() {
            return asked;
        }
        let mut values = self.loras.iter().filter_map(of);
        let first = values.next()?;
        if values.any(|other| other != first) {
            self.warnings.push(Warning::LorasDisagree { setting });
        }
        self.decided.push(setting);
        Some(first)
    }
}
