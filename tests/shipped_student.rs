//! The few-step student of the shipped model: its settings, and one step of it next to steps of the model itself.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::shipped::{EDITS, path, source};
use kontext::image::RgbImage;
use kontext::{Device, LoadedLora, Pipeline, Request, Sampler};
use kontext_bench::metrics::{gradient, psnr};

fn student() -> Pipeline {
    let builder = Pipeline::builder().device(Device::Cpu);
    builder.use_lora(path("ladd.safetensors")).load(path("")).unwrap()
}

fn results(pipe: &Pipeline, steps: usize) -> Vec<RgbImage> {
    let edit = |(name, instruction): &(&str, &str)| {
        let request = Request::edit(source(name), *instruction).steps(steps).seed(3);
        pipe.run(&request).unwrap().image
    };
    EDITS.iter().map(edit).collect()
}

#[test]
fn the_students_file_says_how_it_is_used() {
    let pipe = student();
    let scales: Vec<f64> = pipe.loras().iter().map(LoadedLora::scale).collect();
    assert_eq!(scales, [1.5]);
    let plan = pipe.plan(&Request::generate("a cat")).unwrap();
    assert_eq!(
        (plan.evaluations(), plan.sampler, plan.shift),
        (2, Sampler::Consistency, Some(2.0))
    );
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    let size = std::fs::metadata(path("ladd.safetensors")).unwrap().len();
    assert!(size < 1 << 20, "{size} bytes");
}

/// The bounds are those of the card with room for eight edits instead of 256.
#[test]
fn one_step_of_the_student_is_as_sharp_as_the_models_four() {
    let model = Pipeline::builder().device(Device::Cpu).load(path("")).unwrap();
    let (one, four, of_student) = (results(&model, 1), results(&model, 4), results(&student(), 1));
    let total = |images: &[RgbImage]| images.iter().map(|image| gradient(image).unwrap()).sum::<f64>();
    assert!(total(&one) < total(&four), "{} and {}", total(&one), total(&four));
    assert!(
        total(&of_student) > total(&four),
        "{} and {}",
        total(&of_student),
        total(&four)
    );
    for (index, (name, _)) in EDITS.iter().enumerate() {
        let near = |other: &RgbImage| psnr(&of_student[index], other).unwrap();
        let own = near(&four[index]);
        assert!(own > 25.0 && own > near(&source(name)), "{name}: {own:.1} dB");
    }
}
