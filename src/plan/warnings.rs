//! Warnings of a plan.

use kontext_dit::StepWork;
use kontext_sampler::{CfgMode, Conformance, References, Size};

use super::sizes::MOST_STRETCH;
use super::{ModelFacts, Plan, masked};
use crate::{Request, Warning};

/// Returns the warnings of a request and its plan: ignored settings of the builder and the request, then sizes.
pub(super) fn warnings(request: &Request, plan: &Plan, facts: &ModelFacts) -> Vec<Warning> {
    let mut warnings = facts.ignored.clone();
    warnings.extend(of_guidance(request, facts));
    if request.prompt_weights && !request.weighs_words() {
        let conformance = request.conformance;
        warnings.push(Warning::PromptWeightsIgnored { conformance });
    }
    if let (Some(steps), Some(_)) = (request.steps, &request.sigmas) {
        warnings.push(Warning::StepsIgnored { steps });
    }
    if let (Some(shift), Some(_)) = (request.shift, &request.sigmas)
        && request.conformance != Conformance::Diffusers
    {
        warnings.push(Warning::ShiftIgnored { shift });
    }
    let seeded = plan.sampler.adds_noise() && plan.schedule.steps() > 1;
    if let (Some(seed), Some(_), false) = (request.seed, &request.noise, seeded) {
        warnings.push(Warning::SeedIgnored { seed });
    }
    let steps = plan.schedule.steps();
    let fewest = request.step_cache.fewest(steps, !plan.references.is_empty());
    if !request.step_cache.is_off() && !fewest.contains(&StepWork::Skipped) {
        warnings.push(Warning::StepCacheIgnored { steps });
    }
    if request.reference_reuse.is_some() {
        if plan.references.is_empty() {
            warnings.push(Warning::ReferenceReuseIgnored);
        } else if !plan.reads_kept_keys() {
            warnings.push(Warning::ReferenceReuseFull { steps });
        }
    }
    let (references, images) = (request.references, request.images.len());
    let placed = match references {
        References::Offset => true,
        References::Index => images > 1,
        // A single image is not mapped back to its size either.
        References::Stitch => images > 0,
    };
    if !placed {
        warnings.push(Warning::ReferencesIgnored { references });
    }
    warnings.extend(masked::ignored(request));
    if request.register && !plan.registers {
        warnings.push(Warning::RegisterIgnored);
    }
    warnings.extend(of_sizes(request, plan));
    warnings
}

/// Returns those of both kinds of guidance.
fn of_guidance(request: &Request, facts: &ModelFacts) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let (true_cfg, conformance) = (request.true_cfg, request.conformance);
    if request.negative().is_none() {
        let mut texts = [&request.negative_prompt, &request.negative_prompt_2]
            .into_iter()
            .flatten();
        if true_cfg <= 1.0 && texts.any(|text| !text.is_empty()) {
            warnings.push(Warning::NegativePromptIgnored { true_cfg });
        } else if true_cfg != 1.0 {
            warnings.push(Warning::TrueCfgIgnored { true_cfg, conformance });
        }
        if request.cfg_mode != CfgMode::default() {
            warnings.push(Warning::CfgModeIgnored);
        }
    }
    if let Some(guidance) = request.guidance.filter(|_| !facts.guidance_embed) {
        warnings.push(Warning::GuidanceIgnored { guidance });
    }
    if request.guidance_schedule.is_some() && !facts.guidance_embed {
        warnings.push(Warning::GuidanceScheduleIgnored);
    }
    warnings
}

fn of_sizes(request: &Request, plan: &Plan) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let (target, conformance) = (plan.target.size(), request.conformance);
    let sized = request.width.is_some() || request.height.is_some();
    let masked = plan.mask.is_some() && conformance == Conformance::Diffusers;
    if masked && (sized || request.max_area.is_some()) {
        warnings.push(Warning::MaskedSize { target });
    }
    if let Some(max_area) = request.max_area.filter(|_| sized && conformance == Conformance::Native) {
        warnings.push(Warning::MaxAreaIgnored { max_area });
    }
    let asked = Size::new(
        request.width.unwrap_or(target.width),
        request.height.unwrap_or(target.height),
    );
    if asked != target && !masked {
        warnings.push(Warning::SizeAdjusted {
            asked,
            target,
            conformance,
        });
    }
    let source = plan.references.first().filter(|_| plan.sees_source());
    if let Some(first) = source.filter(|first| first.grid != plan.target) {
        warnings.push(Warning::GridsDiffer {
            reference: first.grid,
            target: plan.target,
        });
    }
    for (index, reference) in plan.references.iter().enumerate() {
        let stretch = reference.fitted.ratio() / reference.input.ratio();
        if !(1.0 / MOST_STRETCH..=MOST_STRETCH).contains(&stretch) {
            let percent = (stretch.max(1.0 / stretch) - 1.0) * 100.0;
            warnings.push(Warning::Stretched { index, percent });
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use image::RgbImage;
    use kontext_dit::{DitConfig, MagCache, ReferenceReuse, StepCache};
    use kontext_sampler::{Sampler, Shift};

    use super::*;
    use crate::ModelDefaults;

    fn told(request: &Request, guidance_embed: bool) -> Vec<String> {
        let config = DitConfig {
            guidance_embed,
            ..DitConfig::kontext_dev()
        };
        let facts = ModelFacts::new(&config, Shift::dev(), 512, ModelDefaults::default());
        let plan = Plan::new(request, &facts).unwrap();
        plan.warnings.iter().map(ToString::to_string).collect()
    }

    fn edit() -> Request {
        Request::edit(RgbImage::new(1024, 1024), "")
    }

    #[test]
    fn a_setting_without_effect_is_named_with_what_to_set() {
        let noise = ndarray::ArrayD::zeros(vec![1, 4096, 64]);
        let (diffusers, bfl) = (Conformance::Diffusers, Conformance::Bfl);
        let cases = [
            (
                edit().negative_prompt("red"),
                "the negative prompt has no effect with true_cfg 1; set true_cfg above 1",
            ),
            (
                edit().negative_prompt_2("red").true_cfg(0.5),
                "the negative prompt has no effect with true_cfg 0.5; set true_cfg above 1",
            ),
            (
                edit().true_cfg(0.5),
                "true_cfg 0.5 has no effect; set it above 1, or leave it at 1",
            ),
            (
                edit().true_cfg(3.0).conform(bfl),
                "true_cfg 3 has no effect without a negative prompt in the conventions of Bfl; set negative_prompt, which may be empty",
            ),
            (
                edit().true_cfg(3.0).negative_prompt_2("red").conform(diffusers),
                "true_cfg 3 has no effect without a negative prompt in the conventions of Diffusers; set negative_prompt, which may be empty",
            ),
            (
                edit().cfg_mode(CfgMode::Batched),
                "cfg_mode has no effect without true_cfg; set true_cfg above 1",
            ),
            (
                edit().steps(7).sigmas([1.0, 0.5]),
                "steps 7 has no effect next to sigmas; set one of them",
            ),
            (
                edit().shift(2.0).sigmas([1.0, 0.5]),
                "shift 2 has no effect next to sigmas, which are taken as they are; set one of them",
            ),
            (
                edit()
                    .seed(7)
                    .noise(noise.clone())
                    .sampler(Sampler::Consistency)
                    .steps(1),
                "seed 7 has no effect next to noise; set one of them",
            ),
            (
                edit().seed(7).noise(noise),
                "seed 7 has no effect next to noise; set one of them",
            ),
            (
                edit().steps(2).step_cache(StepCache::MagCache(MagCache::default())),
                "the step cache has no effect: all of the 2 steps are computed; leave it out, or set more steps or other parameters",
            ),
            (
                Request::default().reference_reuse(ReferenceReuse::default()),
                "reference reuse has no effect without reference images; leave it out",
            ),
            (
                edit().steps(2).reference_reuse(ReferenceReuse::default()),
                "reference reuse has no effect: all of the 2 steps are full or skipped; leave it out, or set more steps or other parameters",
            ),
            (
                edit()
                    .steps(4)
                    .step_cache("taylor:first=1".parse().unwrap())
                    .reference_reuse(ReferenceReuse::default()),
                "reference reuse has no effect: all of the 4 steps are full or skipped; leave it out, or set more steps or other parameters",
            ),
            (
                edit().step_cache("teacache:threshold=0".parse().unwrap()),
                "the step cache has no effect: all of the 28 steps are computed; leave it out, or set more steps or other parameters",
            ),
            (
                edit().size(1024, 1024).max_area(65_536),
                "max_area 65536 has no effect next to width or height; leave it out, or leave out both sides",
            ),
            (
                edit().references(References::Index),
                "references Index has no effect with so few images; add one, or leave it out",
            ),
            (
                Request::default().references(References::Stitch),
                "references Stitch has no effect with so few images; add one, or leave it out",
            ),
            (
                Request::default().native_size(),
                "native_size has no effect, because the result keeps the model's size anyway; leave it out",
            ),
            (
                edit().size(1024, 1024).native_size(),
                "native_size has no effect, because the result keeps the model's size anyway; leave it out",
            ),
            (
                Request::default().size(512, 512).conform(diffusers),
                "the size 512x512 becomes 1024x1024 in the conventions of Diffusers; set max_area to its pixels, and sides to multiples of 16",
            ),
            (
                Request::default().size(500, 512).conform(bfl),
                "the size 500x512 becomes 512x512 in the conventions of Bfl; set sides to multiples of 16",
            ),
        ];
        for (request, expected) in cases {
            assert_eq!(told(&request, true), [expected], "{request:?}");
        }
    }

    #[test]
    fn settings_that_have_an_effect_give_no_warning() {
        let two = edit().reference(RgbImage::new(64, 64));
        let diffusers = Conformance::Diffusers;
        for request in [
            edit()
                .prompt_2("red")
                .guidance(4.0)
                .steps(9)
                .seed(1)
                .strength(0.5)
                .native_size(),
            edit()
                .true_cfg(2.0)
                .negative_prompt("red")
                .negative_prompt_2("blue")
                .cfg_mode(CfgMode::Batched),
            edit().true_cfg(2.0).negative_prompt("red").conform(diffusers),
            edit().true_cfg(2.0),
            // Programs pass an empty negative prompt where there is none.
            edit().negative_prompt(""),
            edit().max_area(65_536),
            edit().steps(28).step_cache(StepCache::MagCache(MagCache::default())),
            edit().steps(4).reference_reuse(ReferenceReuse::default()),
            two.clone().references(References::Index),
            edit().references(References::Stitch),
            Request::default().size(512, 512).max_area(512 * 512).conform(diffusers),
            edit().shift(2.0).sampler(Sampler::Heun),
            edit().shift(2.0).sigmas([1.0, 0.5]).conform(diffusers),
            // The steps add seeded noise.
            edit()
                .seed(7)
                .noise(ndarray::ArrayD::zeros(vec![1, 4096, 64]))
                .sampler(Sampler::Consistency),
        ] {
            assert_eq!(told(&request, true), [""; 0], "{request:?}");
        }
    }

    #[test]
    fn guidance_is_ignored_only_by_a_model_that_embeds_none() {
        let request = edit().guidance(4.0);
        assert_eq!(told(&request, true), [""; 0]);
        assert_eq!(
            told(&request, false),
            ["guidance 4 has no effect, because this model embeds none; use true_cfg and a negative prompt"]
        );
        assert_eq!(told(&edit(), false), [""; 0]);
    }

    #[test]
    fn a_shift_and_a_stretch_are_foreseen() {
        let told = told(&Request::edit(RgbImage::new(1000, 100), "").size(512, 1024), true);
        assert!(
            told[0].starts_with("the reference has ") && told[0].ends_with("an edit in place may shift"),
            "{told:?}"
        );
        assert_eq!(told[1..], ["reference 1 is stretched by 335 %"]);
    }
}
