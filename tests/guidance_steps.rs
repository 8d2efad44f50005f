//! Runs with a guidance value for each step.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

use common::{model, tensors};
use kontext::crates::kontext_formats::save;
use kontext::image::RgbImage;
use kontext::{
    CfgMode, Conformance, Device, Event, Layout, MagCache, Pipeline, Request, Sampler, StepCache, Tensor, Warning,
};

const SIGMAS: [f32; 3] = [1.0, 0.7, 0.4];

static PIPE: LazyLock<Arc<Pipeline>> = LazyLock::new(|| {
    let builder = Pipeline::builder().device(Device::Cpu);
    Arc::new(builder.load(model(Layout::Diffusers)).unwrap())
});

fn edit() -> Request {
    let image = RgbImage::from_fn(64, 64, |x, y| kontext::image::Rgb([(x * 4) as u8, (y * 4) as u8, 99]));
    Request::edit(image, "a hat").max_area(64 * 64).seed(1)
}

/// Returns the latents after each step.
fn steps(request: &Request) -> Vec<Tensor> {
    let mut all = Vec::new();
    let run = PIPE.run_with(request, |event| {
        if let Event::Step { latents, .. } = event {
            all.push(latents.copy());
        }
        ControlFlow::Continue(())
    });
    run.unwrap();
    all
}

#[test]
fn one_value_in_all_steps_has_the_bytes_of_a_plain_run() {
    let requests = [
        edit(),
        edit().sampler(Sampler::Heun),
        edit()
            .batch(2)
            .true_cfg(2.0)
            .negative_prompt("red")
            .cfg_mode(CfgMode::Batched),
        edit().true_cfg(2.0).negative_prompt("red"),
        edit().conform(Conformance::Diffusers),
        edit().step_cache(StepCache::MagCache(MagCache::default())),
    ];
    for request in requests {
        let request = request.steps(4);
        let plain = PIPE.run(&request.clone().guidance(3.5)).unwrap();
        let by_step = PIPE.run(&request.clone().guidance_schedule([3.5; 4])).unwrap();
        assert_eq!(by_step.latents, plain.latents, "{request:?}");
        assert_eq!((by_step.guidance, by_step.image), (3.5, plain.image));
    }
}

#[test]
fn the_steps_before_a_change_are_those_of_a_run_with_one_value() {
    let by_step = |values: [f64; 3]| steps(&edit().sigmas(SIGMAS).guidance_schedule(values));
    let one = |value: f64| steps(&edit().sigmas(SIGMAS).guidance(value));
    let (low, high) = (one(1.0), one(30.0));
    for (values, same) in [([1.0, 30.0, 1.0], 1), ([1.0, 1.0, 30.0], 2), ([1.0, 1.0, 1.0], 3)] {
        let latents = by_step(values);
        for (step, expected) in low.iter().enumerate() {
            assert_eq!(latents[step].equal(expected), step < same, "{values:?}, step {step}");
        }
    }
    assert!(by_step([30.0, 1.0, 1.0])[0].equal(&high[0]));
}

#[test]
fn a_schedule_is_the_run_that_is_spliced_by_hand() {
    let values = [1.0, 30.0, 8.0];
    let latents = steps(&edit().sigmas(SIGMAS).guidance_schedule(values));
    let mut x: Option<Tensor> = None;
    for (step, value) in values.into_iter().enumerate() {
        let mut request = edit().sigmas(&SIGMAS[step..]).guidance(value);
        if let Some(x) = &x {
            let values = Vec::<f32>::try_from(x.flatten(0, -1)).unwrap();
            let shape: Vec<usize> = x.size().iter().map(|size| *size as usize).collect();
            request = request.noise(ndarray::ArrayD::from_shape_vec(shape, values).unwrap());
        }
        let next = steps(&request).swap_remove(0);
        // A product of fewer rows may sum in another order.
        let error = f64::try_from((&next - &latents[step]).abs().max()).unwrap();
        assert!(error < 1e-5, "step {step}: {error:e}");
        x = Some(next);
    }
}

#[test]
fn the_second_evaluation_of_heun_takes_the_value_of_the_next_step() {
    let one = |values: [f64; 2]| {
        steps(
            &edit()
                .sigmas([1.0, 0.5])
                .sampler(Sampler::Heun)
                .guidance_schedule(values),
        )
    };
    let (same, other) = (one([1.0, 1.0]), one([1.0, 30.0]));
    assert!(!same[0].equal(&other[0]));
}

#[test]
fn plan_and_file_show_the_values_and_a_wrong_number_is_refused() {
    let request = edit().steps(4).guidance_schedule([4.0, 4.0, 2.5, 2.5]);
    let plan = PIPE.plan(&request).unwrap();
    assert!(plan.to_string().contains("guidance:    4*2,2.5*2, by step"), "{plan}");
    assert_eq!(plan.guidance, Some(4.0));
    let png = PIPE.run(&request).unwrap().to_png().unwrap();
    assert!(String::from_utf8_lossy(&png).contains("4*2,2.5*2"));
    for (request, words) in [
        (
            request.clone().steps(3),
            "invalid guidance_schedule: expected 3 values, one for each step of the run, got 4",
        ),
        // At half the strength half of the steps are left.
        (request.clone().strength(0.5), "expected 2 values"),
        (
            request.clone().guidance(2.0),
            "invalid guidance: expected none next to guidance_schedule, got 2",
        ),
        (
            edit().steps(1).guidance_schedule([f64::NAN]),
            "invalid guidance_schedule: expected a value from",
        ),
        (edit().steps(1).guidance_schedule([]), "expected 1 values"),
    ] {
        let error = PIPE.plan(&request).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_model_without_guidance_ignores_the_values_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut all = tensors(&model(Layout::SingleFiles).join("flux1-kontext.safetensors"));
    all.retain(|(name, _)| !name.starts_with("guidance_in."));
    let path = folder.path().join("schnell.safetensors");
    save(&path, &all, None).unwrap();
    let builder = Pipeline::builder().device(Device::Cpu).transformer(path);
    let pipe = builder.load(model(Layout::SingleFiles)).unwrap();
    let plain = pipe.run(&edit().steps(2)).unwrap();
    let by_step = pipe.run(&edit().steps(2).guidance_schedule([4.0, 1.0])).unwrap();
    assert_eq!(by_step.latents, plain.latents);
    assert_eq!(by_step.plan.warnings, [Warning::GuidanceScheduleIgnored]);
    assert_eq!((by_step.plan.guidance, by_step.plan.guidance_schedule), (None, None));
}

#[test]
fn a_turn_of_a_session_keeps_its_values_over_saving() {
    let mut session = PIPE.session(RgbImage::new(64, 64));
    session.defaults = Request::default()
        .max_area(64 * 64)
        .steps(2)
        .guidance_schedule([4.0, 1.0]);
    session.defaults.prompt_weights = true;
    session.edit("a (red:1.3) hat").unwrap();
    let folder = tempfile::tempdir().unwrap();
    session.save(folder.path().join("s")).unwrap();
    let restored = PIPE.restore_session(folder.path().join("s")).unwrap();
    let request = restored.current().request().unwrap();
    assert_eq!(request.guidance_schedule, Some([4.0, 1.0].into()));
    assert!(request.prompt_weights);
    let path = folder.path().join("turn.png");
    restored.current().save(&path).unwrap();
    let png = std::fs::read(path).unwrap();
    let png = String::from_utf8_lossy(&png);
    assert!(png.contains("guidance_schedule") && png.contains("prompt_weights"));
}
