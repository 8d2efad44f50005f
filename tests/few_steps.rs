//! Samplers of whole runs, the sources of a run's settings, and the table of docs/few-steps.md, on tiny models.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use common::{copy, loras, model, tensors};
use kontext::crates::kontext_core::array;
use kontext::crates::kontext_formats::save;
use kontext::image::RgbImage;
use kontext::ndarray::{ArrayD, Axis};
use kontext::{
    Conformance, Device, Event, Layout, LoraDefaults, LoraUse, ModelDefaults, Output, Pipeline, PipelineBuilder, Plan,
    Request, Sampler,
};
use tempfile::TempDir;

static LORAS: LazyLock<loras::Model> = LazyLock::new(loras::Model::new);

fn builder() -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu).max_sequence_length(16)
}

fn request() -> Request {
    Request::generate("a cat").size(48, 32).steps(5).seed(5)
}

/// Runs a request; returns its output, its starting noise, and the number of its steps.
fn run(pipe: &Pipeline, request: &Request) -> (Output, ArrayD<f32>, usize) {
    let (mut noise, mut steps) = (None, 0);
    let output = pipe.run_with(request, |event| {
        match event {
            Event::Noise { latents } => noise = Some(array::to_array(latents).unwrap()),
            Event::Step { .. } => steps += 1,
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (output.unwrap(), noise.unwrap(), steps)
}

#[test]
fn an_image_of_a_batch_is_that_of_a_run_with_its_seed_for_every_sampler() {
    let pipe = builder().load(model(Layout::Diffusers)).unwrap();
    let mut images: Vec<RgbImage> = Vec::new();
    for sampler in Sampler::ALL {
        let request = request().sampler(sampler);
        let (both, noise, steps) = run(&pipe, &request.clone().batch(2));
        assert_eq!((both.plan.sampler, steps), (sampler, 5));
        assert_eq!(both.plan.evaluations(), sampler.evaluations(5));
        let (second, _, _) = run(&pipe, &request.clone().seed(6));
        let of_batch = both.latents.index_axis(Axis(0), 1).to_owned();
        let alone = second.latents.index_axis(Axis(0), 0).to_owned();
        let most = (&of_batch - &alone).iter().fold(0.0_f32, |most, d| most.max(d.abs()));
        // One image or two may be multiplied in another order.
        assert!(most < 1e-4, "{sampler}: {most}");
        // The same noise, given: the steps' noise is the seed's, too.
        let (given, _, _) = run(&pipe, &request.clone().batch(2).noise(noise));
        assert_eq!(given.images, both.images, "{sampler}");
        assert_eq!(given.plan.warnings.is_empty(), sampler.adds_noise());
        assert!(!images.contains(&both.image), "{sampler}");
        images.push(both.image);
    }
    // The sampler by default is Euler.
    assert_eq!(run(&pipe, &request()).0.image, images[0]);
}

#[test]
fn every_sampler_edits_from_an_image_and_in_other_conventions() {
    let pipe = builder().load(model(Layout::Diffusers)).unwrap();
    let image = RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 4) as u8, (y * 4) as u8, 9]));
    for sampler in Sampler::ALL {
        for mode in [Conformance::Native, Conformance::Diffusers, Conformance::Bfl] {
            let request = Request::edit(image.clone(), "red").size(64, 64).steps(4).seed(1);
            let mut request = request.sampler(sampler).strength(0.5).conform(mode);
            if mode == Conformance::Diffusers {
                request = request.max_area(64 * 64);
            }
            let (output, _, steps) = run(&pipe, &request);
            assert_eq!((steps, output.plan.schedule.steps()), (2, 2), "{sampler} {mode:?}");
            assert_eq!(output.plan.evaluations(), sampler.evaluations(2));
        }
        let guided = request().sampler(sampler).true_cfg(2.0).negative_prompt("red");
        assert_eq!(pipe.plan(&guided).unwrap().evaluations(), 2 * sampler.evaluations(5));
        assert_eq!(run(&pipe, &guided).2, 5);
    }
}

#[test]
fn a_png_names_the_sampler_unless_it_is_eulers() {
    let pipe = builder().load(model(Layout::Diffusers)).unwrap();
    let names = |sampler: Sampler| {
        let png = pipe.run(&request().sampler(sampler)).unwrap().to_png().unwrap();
        png.windows(8).any(|window| window == b"sampler\0")
    };
    assert_eq!(Sampler::ALL.map(names), [false, true, true, true]);
    let plan = pipe.plan(&request().sampler(Sampler::Heun)).unwrap().to_string();
    assert!(plan.contains("\nsampler:     heun, 9 model evaluations\n"), "{plan}");
}

/// Writes a LoRA of the tiny model that asks for these settings.
fn lora(folder: &Path, name: &str, defaults: LoraDefaults) -> PathBuf {
    let path = folder.join(format!("{name}.safetensors"));
    let facts: HashMap<String, String> = defaults.to_facts().into_iter().collect();
    save(&path, &tensors(&LORAS.lora("red")), Some(facts)).unwrap();
    path
}

fn some() -> LoraDefaults {
    LoraDefaults {
        steps: Some(8),
        guidance: Some(3.5),
        sampler: Some(Sampler::Consistency),
        shift: Some(2.0),
        scale: Some(0.125),
    }
}

/// Plans a request without steps, before the load and after it, which must agree.
fn planned(builder: &PipelineBuilder, folder: &TempDir, request: &Request) -> Plan {
    let before = builder.plan(folder.path(), request).unwrap();
    let after = builder.load(folder.path()).unwrap().plan(request).unwrap();
    assert_eq!(before.to_string(), after.to_string());
    after
}

#[test]
fn the_request_counts_before_the_lora_and_that_before_the_folder() {
    let folder = copy(Layout::Diffusers);
    let plain = Request::generate("a cat").size(48, 32).seed(5);
    let settings = |plan: &Plan| (plan.schedule.steps(), plan.guidance.unwrap(), plan.sampler);
    let second = |plan: &Plan| plan.schedule.sigmas()[1];
    assert_eq!(
        settings(&planned(&builder(), &folder, &plain)),
        (28, 2.5, Sampler::Euler)
    );

    let scheduler = folder.path().join("scheduler/scheduler_config.json");
    std::fs::write(&scheduler, r#"{"shift": 1.0, "stochastic_sampling": true}"#).unwrap();
    let plan = planned(&builder(), &folder, &plain);
    assert_eq!(settings(&plan), (28, 2.5, Sampler::Consistency));
    assert!((second(&plan) - 27.0 / 28.0).abs() < 1e-6);

    let defaults = ModelDefaults {
        steps: Some(4),
        guidance: Some(3.0),
        sampler: Some(Sampler::Heun),
        shift: Some(3.0),
        ..ModelDefaults::default()
    };
    defaults.save(folder.path()).unwrap();
    let plan = planned(&builder(), &folder, &plain);
    assert_eq!(settings(&plan), (4, 3.0, Sampler::Heun));
    assert!((second(&plan) - 0.9).abs() < 1e-6 && plan.by_loras.is_empty());

    let file = lora(folder.path(), "turbo", some());
    let with = builder().use_lora(LoraUse::new(&file));
    let plan = planned(&with, &folder, &plain);
    assert_eq!(settings(&plan), (8, 3.5, Sampler::Consistency));
    assert_eq!(plan.by_loras, ["steps", "guidance", "sampler", "shift"]);
    assert!((second(&plan) - 14.0 / 15.0).abs() < 1e-6);
    assert!(
        plan.to_string()
            .contains("\nby a LoRA:   steps, guidance, sampler, shift\n")
    );
    assert_eq!(plan.warnings, []);

    let own = plain
        .clone()
        .steps(2)
        .sampler(Sampler::Dpmpp2m)
        .guidance(1.5)
        .shift(1.0);
    let plan = planned(&with, &folder, &own);
    assert_eq!(settings(&plan), (2, 1.5, Sampler::Dpmpp2m));
    assert!(plan.by_loras.is_empty() && second(&plan) == 0.5);
    // Levels replace steps and shift, of a LoRA as of a request.
    let plan = planned(&with, &folder, &plain.clone().sigmas([1.0, 0.5]));
    assert_eq!(plan.by_loras, ["guidance", "sampler"]);
    // One that is not used asks for nothing.
    let idle = builder().use_lora(LoraUse::new(&file).inactive());
    assert_eq!(settings(&planned(&idle, &folder, &plain)), (4, 3.0, Sampler::Heun));
    let named = planned(&idle, &folder, &plain.clone().lora("turbo", 1.0));
    assert_eq!(settings(&named), (8, 3.5, Sampler::Consistency));
    let without = planned(&with, &folder, &plain.clone().without_loras());
    assert_eq!(settings(&without), (4, 3.0, Sampler::Heun));
}

#[test]
fn the_scale_of_a_lora_is_the_users_else_that_of_its_file_else_one() {
    let folder = copy(Layout::Diffusers);
    let (asking, plain) = (
        lora(folder.path(), "hyper", some()),
        lora(folder.path(), "plain", LoraDefaults::default()),
    );
    let pipe = builder()
        .use_lora(LoraUse::new(&asking))
        .use_lora(LoraUse::new(&plain))
        .use_lora(LoraUse::new(&asking).named("set").scale(0.5));
    let pipe = pipe.load(folder.path()).unwrap();
    let scales: Vec<f64> = pipe.loras().iter().map(|lora| lora.scale()).collect();
    assert_eq!(scales, [0.125, 1.0, 0.5]);
    assert_eq!(pipe.loras()[0].lora().defaults(), some());
}

#[test]
fn loras_that_disagree_are_named_with_the_setting_to_set() {
    let folder = copy(Layout::Diffusers);
    let other = LoraDefaults {
        steps: Some(4),
        guidance: None,
        ..some()
    };
    let files = [lora(folder.path(), "a", some()), lora(folder.path(), "b", other)];
    let both = files.iter().fold(builder(), |b, file| b.use_lora(LoraUse::new(file)));
    let plain = Request::generate("a cat").size(48, 32);
    let plan = planned(&both, &folder, &plain);
    assert_eq!(plan.schedule.steps(), 8);
    let warnings: Vec<String> = plan.warnings.iter().map(ToString::to_string).collect();
    let words = "the LoRAs ask for different values of steps, and that of the first one is taken; set steps";
    assert_eq!(warnings, [words]);
    assert_eq!(planned(&both, &folder, &plain.steps(6)).warnings, []);
}

#[test]
fn a_wrong_setting_in_a_lora_is_refused_with_its_key() {
    let folder = copy(Layout::Diffusers);
    let path = folder.path().join("wrong.safetensors");
    let facts = HashMap::from([("kontext.steps".to_owned(), "0".to_owned())]);
    save(&path, &tensors(&LORAS.lora("red")), Some(facts)).unwrap();
    let with = builder().use_lora(LoraUse::new(&path));
    for error in [
        with.load(folder.path()).unwrap_err(),
        with.plan(folder.path(), &Request::generate("")).unwrap_err(),
    ] {
        let causes = error.causes();
        assert!(
            causes.contains("kontext.steps: expected a number from 1 to 1000, got 0"),
            "{causes}"
        );
    }
}

/// Returns the rows of the table of published weights: the cells by their headers.
fn rows() -> Vec<BTreeMap<String, String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/few-steps.md");
    let text = std::fs::read_to_string(path).unwrap();
    let cells = |line: &str| -> Vec<String> {
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let lines = text.lines().skip_while(|line| !line.starts_with("| Weights |"));
    let lines: Vec<&str> = lines.take_while(|line| line.starts_with('|')).collect();
    let headers = cells(lines[0]);
    let row = |line: &&str| headers.iter().cloned().zip(cells(line)).collect();
    lines[2..].iter().map(row).collect()
}

#[test]
fn each_row_of_the_published_weights_plans_as_it_says_without_a_warning() {
    let folder = copy(Layout::SingleFiles);
    let dev = folder.path().join("flux1-kontext.safetensors");
    let schnell = folder.path().join("schnell.safetensors");
    let mut unguided = tensors(&dev);
    unguided.retain(|(name, _)| !name.starts_with("guidance_in."));
    save(&schnell, &unguided, None).unwrap();
    let rows = rows();
    assert!(rows.len() >= 6);
    for row in rows {
        let number = |header: &str| row[header].parse::<f64>().ok();
        let is_schnell = row["Weights"].contains("schnell");
        let mut builder = builder().transformer(if is_schnell { &schnell } else { &dev });
        let mut request = Request::generate("a cat").size(64, 64).seed(1);
        let mut asked = LoraDefaults::default();
        if row["Weights"].contains("LoRA") {
            let file = lora(folder.path(), "published", LoraDefaults::default());
            let lora = LoraUse::new(file);
            asked.scale = number("--lora-scale");
            builder = builder.use_lora(asked.scale.map_or(lora.clone(), |scale| lora.scale(scale)));
        }
        asked.steps = number("--steps").map(|steps| steps as usize);
        asked.guidance = number("--guidance");
        asked.shift = number("--shift");
        asked.sampler = row["--sampler"].parse().ok();
        (request.steps, request.guidance) = (asked.steps, asked.guidance);
        (request.shift, request.sampler) = (asked.shift, asked.sampler);
        let plan = builder.plan(folder.path(), &request).unwrap();
        assert_eq!(plan.warnings, [], "{row:?}");
        let steps = asked.steps.unwrap_or(if is_schnell { 4 } else { 28 });
        assert_eq!(plan.schedule.steps(), steps, "{row:?}");
        let guidance = asked.guidance.unwrap_or(2.5);
        assert_eq!(plan.guidance, (!is_schnell).then_some(guidance), "{row:?}");
        assert_eq!(plan.sampler, asked.sampler.unwrap_or_default());
        // The shift of 16 tokens, of schnell, or the fixed one.
        let even = 1.0 - 1.0 / steps as f64;
        let factor = match asked.shift {
            Some(shift) => shift,
            None if is_schnell => 1.0,
            None => (0.5 + 0.65 * (16.0 - 256.0) / 3840.0_f64).exp(),
        };
        let expected = factor * even / (1.0 + (factor - 1.0) * even);
        assert!(
            (f64::from(plan.schedule.sigmas()[1]) - expected).abs() < 1e-6,
            "{row:?}"
        );
        // A file that asks for the same needs no flags.
        if row["Weights"].contains("LoRA") {
            let file = lora(folder.path(), "asking", asked);
            let with = self::builder().transformer(&dev).use_lora(LoraUse::new(file));
            let plain = Request::generate("a cat").size(64, 64).seed(1);
            let by_file = with.plan(folder.path(), &plain).unwrap();
            assert_eq!((by_file.schedule, by_file.guidance), (plan.schedule, plan.guidance));
            let scale = with.load(folder.path()).unwrap().loras()[0].scale();
            assert_eq!(scale, asked.scale.unwrap_or(1.0));
        }
    }
}
