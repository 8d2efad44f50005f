//! Checks of a request's numbers.

use kontext_core::{Error, Result, range};
use kontext_sampler::geometry::{LARGEST_SIDE, TOKEN_PIXELS};
use kontext_sampler::{Conformance, Grid, Shift};
use kontext_text::{Tokenizer, weighted_texts};

use super::masked::check_settings;
use super::{MaskPlan, ReferencePlan, levels};
use crate::Request;
use crate::defaults::LARGEST_GUIDANCE;

/// Largest batch size, more than any device holds.
const LARGEST_BATCH: usize = 256;

/// Checks a request's prompts, numbers and images.
pub(super) fn check_request(request: &Request) -> Result<()> {
    let optional = [&request.prompt_2, &request.negative_prompt, &request.negative_prompt_2];
    for prompt in optional.into_iter().flatten().chain([&request.prompt]) {
        Tokenizer::check_length(prompt)?;
        if request.weighs_words() {
            weighted_texts(prompt)?;
        }
    }
    check_numbers(request)?;
    if request.strength != 1.0 && request.images.is_empty() {
        return Err(Error::invalid(
            "strength",
            "1 where there is no image to start from",
            request.strength,
        ));
    }
    match request.images.iter().find(|i| i.width() == 0 || i.height() == 0) {
        Some(image) => Err(Error::invalid(
            "reference image",
            "at least one pixel",
            format!("{}x{}", image.width(), image.height()),
        )),
        None => Ok(()),
    }
}

/// Checks that there is a guidance value for each step.
pub(super) fn check_guidance(request: &Request, steps: usize) -> Result<()> {
    match &request.guidance_schedule {
        Some(schedule) if schedule.values.len() != steps => {
            let expected = format!("{steps} values, one for each step of the run");
            Err(Error::invalid("guidance_schedule", expected, schedule.values.len()))
        }
        _ => Ok(()),
    }
}

/// Checks that edited tokens can be compared with the first reference.
pub(super) fn check_reuse(
    request: &Request,
    target: Grid,
    references: &[ReferencePlan],
    mask: Option<&MaskPlan>,
) -> Result<()> {
    let edited = request.reference_reuse.as_ref().filter(|reuse| reuse.edited.is_some());
    match (edited, references.first()) {
        (Some(reuse), Some(_)) if request.negative().is_some() => {
            let expected = "references next to true_cfg above 1: edited tokens are chosen from one prompt's velocity, not \
                            from the combined one";
            Err(Error::invalid("reference_reuse", expected, reuse))
        }
        (Some(reuse), Some(_)) if mask.is_some_and(|mask| !mask.context.has_source()) => {
            let expected = "references, because edited tokens are those that differ from the edited image, which the model \
                            does not see; or another context of the mask";
            Err(Error::invalid("reference_reuse", expected, reuse))
        }
        (Some(reuse), Some(first)) if first.grid != target => {
            let words = |grid: Grid| format!("{}x{}", grid.cols, grid.rows);
            let expected = format!(
                "references, because edited tokens are those that differ from the first reference, which has {} tokens and \
                 the target {}; or a target of its size",
                words(first.grid),
                words(target)
            );
            Err(Error::invalid("reference_reuse", expected, reuse))
        }
        _ => Ok(()),
    }
}

/// Checks the numbers of a request, whatever its images and the model are.
pub(crate) fn check_numbers(request: &Request) -> Result<()> {
    for side in [request.width, request.height].into_iter().flatten() {
        if side == 0 || side > LARGEST_SIDE {
            return Err(Error::invalid(
                "image size",
                format!("1 to {LARGEST_SIDE} pixels on a side"),
                side,
            ));
        }
    }
    let largest = u64::from(LARGEST_SIDE) * u64::from(LARGEST_SIDE);
    let smallest = u64::from(TOKEN_PIXELS) * u64::from(TOKEN_PIXELS);
    if let Some(area) = request.max_area.filter(|a| !(smallest..=largest).contains(a)) {
        return Err(Error::invalid(
            "max_area",
            format!("{smallest} to {largest} pixels"),
            area,
        ));
    }
    if request.max_area.is_some() && request.conformance == Conformance::Bfl {
        return Err(Error::invalid(
            "max_area",
            "none in the conventions of Bfl; give width and height",
            "one",
        ));
    }
    if !(1..=LARGEST_BATCH).contains(&request.batch) {
        return Err(Error::invalid(
            "batch",
            format!("1 to {LARGEST_BATCH} images"),
            request.batch,
        ));
    }
    let by_step = request.guidance_schedule.iter().flat_map(|schedule| &schedule.values);
    let by_step = by_step.map(|value| ("guidance_schedule", *value));
    let values = [
        ("guidance", request.guidance.unwrap_or_default()),
        ("true_cfg", request.true_cfg),
    ];
    if let (Some(guidance), Some(_)) = (request.guidance, &request.guidance_schedule) {
        return Err(Error::invalid("guidance", "none next to guidance_schedule", guidance));
    }
    if let Some((name, value)) = values
        .into_iter()
        .chain(by_step)
        .find(|(_, v)| v.is_nan() || v.abs() > LARGEST_GUIDANCE)
    {
        return Err(Error::invalid(
            name,
            format!("a value from -{LARGEST_GUIDANCE} to {LARGEST_GUIDANCE}"),
            value,
        ));
    }
    check_settings(request)?;
    request.step_cache.validate()?;
    if let Some(reuse) = &request.reference_reuse {
        reuse.validate()?;
        if reuse.edited.is_some() && !request.step_cache.is_off() {
            return Err(Error::invalid(
                "reference_reuse",
                "references next to a step cache, or no step cache: edited tokens have an estimated velocity instead",
                reuse,
            ));
        }
    }
    for lora in request.loras.iter().flatten() {
        range::finite("scale of a LoRA", lora.scale)?;
    }
    if let Some(shift) = request.shift {
        range::within("shift", shift, Shift::RANGE)?;
    }
    // The target and the shift of the model change the levels, and not which are accepted.
    levels(request, request.steps.unwrap_or(1), 1, Shift::schnell()).map(drop)
}
