//! Inpainting in the conventions of diffusers, against runs of `FluxKontextInpaintPipeline` on the same weights.
//!
//! Fixture: `tests/reference/parts/inpaint.py`, which has the whole checkpoint and four runs of it.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::fs;
use std::ops::ControlFlow;
use std::sync::LazyLock;

use image::{GrayImage, RgbImage};
use kontext::crates::kontext_formats;
use kontext::crates::kontext_sampler::pack;
use kontext::{
    Conformance, Device, Event, Kind, Mask, MaskContext, Pipeline, Request, Schedule, Shift, Size, Tensor, Weights,
};
use kontext_fixtures::Fixture;
use serde_json::Value;
use tempfile::TempDir;

/// Largest difference of latents, relative to their norm. The same checkpoint run twice by torch on two machines differs
/// by up to 1.1e-6 in a value, since matrix products are summed in another order.
const LATENTS: f64 = 1e-6;

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| Fixture::open("inpaint.safetensors"));

/// The checkpoint of the fixture, written as a folder, and its pipeline.
static PIPE: LazyLock<(TempDir, Pipeline)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| {
        let path = folder.path().join(name);
        kontext::crates::kontext_core::create_folder(path.parent().unwrap()).unwrap();
        path
    };
    for (name, text) in FIXTURE.metadata("files").as_object().unwrap() {
        fs::write(path(name), text.as_str().unwrap()).unwrap();
    }
    let weights = Weights::synthetic(FIXTURE.metadata("seed").as_u64().unwrap());
    for (name, shapes) in FIXTURE.metadata("weights").as_object().unwrap() {
        let tensor = |(name, shape): (&String, &Value)| {
            let shape: Vec<i64> = serde_json::from_value(shape.clone()).unwrap();
            (name.clone(), weights.tensor(name, &shape).unwrap())
        };
        let tensors: Vec<(String, Tensor)> = shapes.as_object().unwrap().iter().map(tensor).collect();
        kontext_formats::save(path(name), &tensors, None).unwrap();
    }
    let pipe = Pipeline::builder().device(Device::Cpu).load(folder.path()).unwrap();
    (folder, pipe)
});

fn image(name: &str) -> RgbImage {
    let tensor = FIXTURE.tensor(name);
    RgbImage::from_raw(tensor.size()[1] as u32, tensor.size()[0] as u32, FIXTURE.bytes(name)).unwrap()
}

fn mask() -> GrayImage {
    let tensor = FIXTURE.tensor("mask");
    GrayImage::from_raw(tensor.size()[1] as u32, tensor.size()[0] as u32, FIXTURE.bytes("mask")).unwrap()
}

/// Returns the request of a case.
fn request(case: &Value) -> Request {
    let mut request = Request::edit(image("image"), case["prompt"].as_str().unwrap())
        .conform(Conformance::Diffusers)
        .mask(mask())
        .steps(case["steps"].as_u64().unwrap() as usize)
        .guidance(case["guidance"].as_f64().unwrap())
        .seed(case["seed"].as_u64().unwrap())
        .strength(case["strength"].as_f64().unwrap_or(1.0))
        .true_cfg(case["true_cfg"].as_f64().unwrap_or(1.0));
    if case["reference"].as_bool() == Some(true) {
        request = request.reference(image("reference"));
    }
    if let Some(negative) = case["negative"].as_str() {
        request = request.negative_prompt(negative);
    }
    request
}

/// Checks latents against those of the fixture.
fn check(name: &str, got: &Tensor, bound: f64) {
    let expected = FIXTURE.tensor(name);
    assert_eq!(got.size(), expected.size(), "{name}");
    let distance = (got - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
    assert!(distance <= bound, "{name}: {distance:e}");
}

#[test]
fn every_step_of_the_four_cases_is_that_of_the_inpainting_pipeline() {
    let cases = FIXTURE.metadata("cases");
    let cases = cases.as_object().unwrap();
    assert_eq!(cases.len(), 4);
    for (case, arguments) in cases {
        let name = |tensor: &str| format!("{case}.{tensor}");
        let request = request(arguments);
        let mut steps = 0;
        let output = PIPE.1.run_with(&request, |event| {
            match event {
                Event::Planned { plan, .. } => {
                    let sigmas = FIXTURE.floats(&name("sigmas"));
                    assert_eq!(plan.schedule.sigmas(), sigmas, "{case}");
                    let context = plan.mask.unwrap().context;
                    let reference = arguments["reference"].as_bool() == Some(true);
                    assert_eq!(context == MaskContext::References, reference, "{case}");
                    assert!(plan.warnings.is_empty(), "{case}: {:?}", plan.warnings);
                }
                Event::Encoded {
                    conditioning, negative, ..
                } => {
                    let prefix = if negative { "negative_" } else { "" };
                    let (states, pooled) = (&conditioning.prompt_embeds, &conditioning.pooled);
                    check(&name(&format!("{prefix}prompt_embeds")), states, LATENTS);
                    check(&name(&format!("{prefix}pooled_prompt_embeds")), pooled, LATENTS);
                }
                Event::Reference { latents, .. } => check(&name("context"), &pack(latents).unwrap(), LATENTS),
                Event::Noise { latents } => check(&name("start"), latents, LATENTS),
                Event::Step { latents, done, .. } => {
                    steps = done;
                    check(&name(&format!("step_{}", done - 1)), latents, LATENTS);
                    // Outside the mask every step is the source with its noise: equal but for the autoencoder's part.
                    let kept = FIXTURE.tensor(&name("mask")).eq(0.0);
                    let expected = FIXTURE.tensor(&name(&format!("step_{}", done - 1)));
                    let distance = (latents - expected).masked_select(&kept).abs().max().double_value(&[]);
                    assert!(distance < 2e-6, "{case}, step {done}: {distance:e}");
                }
                _ => {}
            }
            ControlFlow::Continue(())
        });
        let output = output.unwrap();
        assert!(FIXTURE.contains(&name(&format!("step_{}", steps - 1))));
        assert!(!FIXTURE.contains(&name(&format!("step_{steps}"))));
        // Levels near a rounding tie differ by one.
        let expected = image(&name("picture"));
        assert_eq!(output.image.dimensions(), expected.dimensions());
        let pairs = output.image.iter().zip(expected.iter());
        let differences: Vec<u8> = pairs.map(|(a, b)| a.abs_diff(*b)).filter(|d| *d > 0).collect();
        assert!(
            differences.len() < 20 && differences.iter().all(|d| *d == 1),
            "{case}: {differences:?}"
        );
        assert!(output.changed.is_none(), "diffusers mixes nothing back");
    }
}

#[test]
fn a_strength_leaves_out_the_steps_that_diffusers_leaves_out() {
    let starts: Vec<(usize, f64, usize)> = serde_json::from_value(FIXTURE.metadata("starts")).unwrap();
    assert!(starts.len() > 9);
    for (steps, strength, start) in starts {
        let whole = Schedule::new(steps, 24, Shift::dev(), Conformance::Diffusers).unwrap();
        let sigmas = whole.sigmas().to_vec();
        assert_eq!(
            whole.strength(strength).unwrap().sigmas(),
            &sigmas[start..],
            "{steps} steps, {strength}"
        );
    }
}

#[test]
fn what_the_inpainting_pipeline_lacks_is_refused_and_what_it_ignores_is_named() {
    let plan = |request: &Request| PIPE.1.plan(request);
    let edit = || {
        Request::edit(image("image"), "a hat")
            .conform(Conformance::Diffusers)
            .steps(2)
    };
    let refused = [
        (edit().mask(Mask::new(mask()).crop(8)), "`padding_mask_crop`"),
        (
            edit().mask(mask()).outpaint(kontext::Outpaint::sides(8, 0, 0, 0)),
            "which pads nothing",
        ),
        (
            edit()
                .mask(mask())
                .reference(image("reference"))
                .reference(image("reference")),
            "at most one image",
        ),
        (
            edit()
                .reference(image("reference"))
                .mask(Mask::new(mask()).context(MaskContext::Both)),
            "`Source` or `References`",
        ),
        (edit().mask(mask()).conform(Conformance::Bfl), "no masks for Kontext"),
    ];
    for (request, words) in refused {
        let error = plan(&request).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let ignored = edit().mask(Mask::new(mask()).grow(3.0).feather(2.0)).size(32, 32);
    let warnings: Vec<String> = plan(&ignored)
        .unwrap()
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    for words in ["grow of the mask", "feather of the mask", "the size is 96x64"] {
        assert!(
            warnings.iter().any(|warning| warning.contains(words)),
            "{words}: {warnings:?}"
        );
    }
    assert_eq!(plan(&ignored).unwrap().output, Size::new(96, 64));
    assert_eq!(Kind::Float, PIPE.1.dtype());
}
