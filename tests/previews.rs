//! Previews of runs: their order, size and likeness with every method, sampler, convention and batch.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // In helper functions of a test.

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use common::shipped;
use kontext::crates::kontext_core::images::resize;
use kontext::crates::kontext_vae::{AutoencoderTiny, LatentMap, TinyConfig};
use kontext::image::{GrayImage, Luma, Rgb, RgbImage};
use kontext::{
    Autoencoder, Conformance, Device, Error, Event, Kind, ModelSizes, Output, Pipeline, Preview, PreviewFactors,
    PreviewMethod, Request, Result, Sampler, StreamEvent, Weights,
};
use tempfile::TempDir;

/// The shipped model.
static EMOJI: LazyLock<Pipeline> =
    LazyLock::new(|| Pipeline::builder().device(Device::Cpu).load(shipped::path("")).unwrap());

/// A tiny autoencoder of random weights.
static TINY: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    save_tiny(&folder.path().join("tiny.safetensors"), &TinyConfig::taef1());
    folder
});

fn save_tiny(path: &Path, config: &TinyConfig) {
    let weights = Weights::synthetic(3);
    AutoencoderTiny::new(&weights, config).unwrap();
    let tensor = |(name, shape): (String, Vec<i64>)| (name.clone(), weights.tensor(&name, &shape).unwrap());
    let tensors: Vec<_> = weights.shapes().into_iter().map(tensor).collect();
    kontext::crates::kontext_formats::save(path, &tensors, None).unwrap();
}

fn every_step(method: PreviewMethod) -> Preview {
    Preview::default().method(method).every(Duration::ZERO)
}

/// Runs a request; returns its previews with their steps, and checks that each follows its step.
fn previews(pipe: &Pipeline, request: &Request) -> Result<(Vec<(usize, RgbImage)>, Output)> {
    let (mut shown, mut last) = (Vec::new(), 0);
    let output = pipe.run_with(request, |event| {
        match event {
            Event::Step { done, .. } => last = done,
            Event::Preview { done, total, image } => {
                assert!(
                    done == last && total == request.steps.unwrap(),
                    "{done} after step {last}"
                );
                shown.push((done, image.clone()));
            }
            Event::Decoded { .. } => last = 0,
            _ => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok((shown, output))
}

/// Returns the root mean squared difference in levels of 255.
fn rms(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!(a.dimensions(), b.dimensions());
    let squares = a
        .as_raw()
        .iter()
        .zip(b.as_raw())
        .map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    (squares.sum::<f64>() / a.as_raw().len() as f64).sqrt()
}

/// Returns the mean colours of areas of 8x8 pixels.
fn averaged(image: &RgbImage) -> RgbImage {
    RgbImage::from_fn(image.width() / 8, image.height() / 8, |x, y| {
        let mut sum = [0_u32; 3];
        for (dx, dy) in (0..64).map(|n| (n % 8, n / 8)) {
            let pixel = image.get_pixel(8 * x + dx, 8 * y + dy).0;
            sum = [0, 1, 2].map(|c| sum[c] + u32::from(pixel[c]));
        }
        Rgb(sum.map(|sum| (sum / 64) as u8))
    })
}

/// Returns the distance to the best single colour.
fn contrast(image: &RgbImage) -> f64 {
    let count = f64::from(image.width() * image.height());
    let mean = [0, 1, 2].map(|c| image.pixels().map(|p| f64::from(p.0[c])).sum::<f64>() / count);
    rms(
        image,
        &RgbImage::from_pixel(image.width(), image.height(), Rgb(mean.map(|m| m.round() as u8))),
    )
}

#[test]
fn every_method_shows_each_step_of_every_kind_of_run_and_changes_no_byte() {
    let sizes = ModelSizes::small();
    let decoder = TINY.path().join("tiny.safetensors");
    let builder = Pipeline::builder().device(Device::Cpu).preview_decoder(&decoder);
    let mut parts = builder.random_parts(&sizes, 7).unwrap();
    // diffusers takes a masked edit's size from these.
    parts.defaults.sizes = Some(vec![[64, 48], [64, 64]]);
    let pipe = builder.assemble(parts).unwrap();
    let photo = RgbImage::from_fn(64, 48, |x, y| Rgb([(x * 4) as u8, (y * 5) as u8, (x ^ y) as u8]));
    let mask = GrayImage::from_fn(64, 48, |x, _| Luma([if x < 32 { 0 } else { 255 }]));
    let mut runs = 0;
    for conformance in [Conformance::Native, Conformance::Diffusers] {
        for sampler in Sampler::ALL {
            for (batch, masked, true_cfg) in [(1, false, 1.0), (2, true, 1.0), (2, false, 2.0), (1, true, 2.0)] {
                let mut request = Request::edit(&photo, "a hat")
                    .size(64, 48)
                    .steps(3)
                    .seed(3)
                    .sampler(sampler)
                    .batch(batch)
                    .conform(conformance);
                if conformance == Conformance::Diffusers {
                    // It maps given sizes to this area.
                    request = request.max_area(64 * 48);
                }
                if masked {
                    request = request.mask(mask.clone());
                }
                if true_cfg > 1.0 {
                    request = request.true_cfg(true_cfg).negative_prompt("rain");
                }
                let name = format!("{conformance:?} {sampler} {batch} {masked} {true_cfg}");
                let target = pipe.plan(&request).unwrap().target.size();
                assert!(target.area() <= 64 * 64, "{name}: {target}");
                let (none, plain) = previews(&pipe, &request).unwrap();
                assert!(none.is_empty(), "{name}");
                for method in PreviewMethod::ALL {
                    let shown = previews(&pipe, &request.clone().preview(every_step(method))).unwrap();
                    let (shown, output) = shown;
                    assert_eq!(
                        (&output.images, &output.latents),
                        (&plain.images, &plain.latents),
                        "{name} {method}"
                    );
                    let steps: Vec<usize> = shown.iter().map(|(done, _)| *done).collect();
                    assert_eq!(steps, [1, 2, 3], "{name} {method}");
                    let whole = matches!(method, PreviewMethod::Auto | PreviewMethod::Tiny);
                    let size = if whole {
                        (target.width, target.height)
                    } else {
                        (target.width / 8, target.height / 8)
                    };
                    assert!(
                        shown.iter().all(|(_, image)| image.dimensions() == size),
                        "{name} {method}"
                    );
                    // The last step ends at its prediction: the preview is the map of the first image's latents.
                    let last = &shown[2].1;
                    let latents = first_latents(&output);
                    let exact = match method {
                        PreviewMethod::Auto | PreviewMethod::Tiny => tiny(&decoder).decode(&latents).unwrap(),
                        PreviewMethod::Linear(PreviewFactors::ComfyUi) => of(&LatentMap::comfy_ui(), &latents),
                        PreviewMethod::Linear(PreviewFactors::StableDiffusionCpp) => {
                            of(&LatentMap::stable_diffusion_cpp(), &latents)
                        }
                        _ => {
                            let vae = pipe_map(&sizes);
                            of(&vae, &latents)
                        }
                    };
                    let exact = kontext::crates::kontext_core::images::from_tensor(&exact, Default::default());
                    // A mask's blend and the sampler's own sum round differently: one level, at most.
                    // In diffusers' conventions the model's own prediction is shown outside of the mask, too.
                    let own = masked && conformance == Conformance::Diffusers;
                    assert!(own || rms(last, &exact.unwrap()[0]) < 1.0, "{name} {method}");
                    runs += 1;
                }
            }
        }
    }
    assert_eq!(runs, 2 * 4 * 4 * 5);
}

fn tiny(path: &Path) -> Autoencoder {
    Autoencoder::open(path, Kind::Float, Device::Cpu).unwrap()
}

fn of(map: &LatentMap, latents: &kontext::Tensor) -> kontext::Tensor {
    map.on(Device::Cpu).unwrap().of(latents).unwrap()
}

/// Returns the map that a pipeline of random weights fits to its autoencoder.
fn pipe_map(sizes: &ModelSizes) -> LatentMap {
    static MAP: std::sync::OnceLock<LatentMap> = std::sync::OnceLock::new();
    let fit = || {
        let parts = Pipeline::builder().device(Device::Cpu).random_parts(sizes, 7).unwrap();
        LatentMap::of(&parts.vae, Kind::Float, Device::Cpu).unwrap()
    };
    MAP.get_or_init(fit).clone()
}

/// Returns the latents [1, C, H, W] of a run's first image.
fn first_latents(output: &Output) -> kontext::Tensor {
    let latents = kontext::crates::kontext_core::array::from_array(&output.latents.view()).unwrap();
    kontext::crates::kontext_sampler::unpack(&latents.narrow(0, 0, 1), output.plan.target).unwrap()
}

#[test]
fn previews_of_the_shipped_model_come_to_resemble_the_result() {
    for (name, prompt) in shipped::EDITS.into_iter().take(4) {
        let request = Request::edit(shipped::source(name), prompt).steps(8).seed(7);
        let (shown, output) = previews(&EMOJI, &request.preview(every_step(PreviewMethod::Auto))).unwrap();
        let result = averaged(&output.image);
        let errors: Vec<f64> = shown.iter().map(|(_, image)| rms(image, &result)).collect();
        let contrast = contrast(&result);
        println!("{name}: {errors:.1?} of {contrast:.1}");
        assert_eq!(errors.len(), 8);
        // A linear map of 16 channels is off by a quarter to a half of what one colour for all is.
        assert!(errors[7] < 0.65 * contrast, "{name}: {errors:?} of {contrast}");
        let to_go = |step: usize| rms(&shown[step].1, &shown[7].1);
        assert!(to_go(0) > to_go(3) && to_go(3) > to_go(6), "{name}");
    }
}

#[test]
fn the_interval_leaves_out_steps_but_never_the_first() {
    let pipe = Pipeline::builder()
        .device(Device::Cpu)
        .random(&ModelSizes::small(), 7)
        .unwrap();
    let request = Request::generate("a cat").size(32, 32).steps(4).seed(1);
    let long = Preview::default().every(Duration::from_secs(3600));
    let (shown, _) = previews(&pipe, &request.clone().preview(long)).unwrap();
    assert_eq!(shown.iter().map(|(done, _)| *done).collect::<Vec<_>>(), [1]);
    // Each step of this run is slowed down to more than half of the interval.
    let (mut shown, pause) = (Vec::new(), Duration::from_millis(60));
    let preview = Preview::default().every(2 * pause - Duration::from_millis(10));
    let slow = |event: Event<'_>| {
        match event {
            Event::Step { .. } => std::thread::sleep(pause),
            Event::Preview { done, .. } => shown.push(done),
            _ => {}
        }
        ControlFlow::Continue(())
    };
    pipe.run_with(&request.steps(6).preview(preview), slow).unwrap();
    assert!(
        shown.first() == Some(&1) && shown.windows(2).all(|pair| pair[1] > pair[0]),
        "{shown:?}"
    );
    assert!((2..=6).contains(&shown.len()), "{shown:?}");
}

#[test]
fn a_run_is_cancelled_from_within_a_preview() {
    let pipe = Pipeline::builder()
        .device(Device::Cpu)
        .random(&ModelSizes::small(), 7)
        .unwrap();
    let request = Request::generate("a cat").size(32, 32).steps(4).seed(1);
    for at in 1..=4 {
        let stop = |event: Event<'_>| match event {
            Event::Preview { done, .. } if done == at => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let request = request.clone().preview(every_step(PreviewMethod::Auto));
        let error = pipe.run_with(&request, stop).unwrap_err();
        assert!(
            matches!(error, Error::Cancelled { done, total: 4 } if done == at),
            "{error:?}"
        );
    }
}

#[test]
fn a_stream_carries_previews_after_their_steps() {
    let pipe = Arc::new(
        Pipeline::builder()
            .device(Device::Cpu)
            .random(&ModelSizes::small(), 7)
            .unwrap(),
    );
    let request = Request::generate("a cat").size(32, 48).steps(2).seed(1);
    let request = request.preview(every_step(PreviewMethod::Auto));
    let mut seen = Vec::new();
    for event in pipe.run_stream(request) {
        match event.unwrap() {
            StreamEvent::Step { done, .. } => seen.push(("step", done, (0, 0))),
            StreamEvent::Preview { done, image, .. } => seen.push(("preview", done, image.dimensions())),
            _ => {}
        }
    }
    let expected = [
        ("step", 1, (0, 0)),
        ("preview", 1, (4, 6)),
        ("step", 2, (0, 0)),
        ("preview", 2, (4, 6)),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_preview_is_at_most_512_pixels_large_and_shows_the_masked_region() {
    let decoder = TINY.path().join("tiny.safetensors");
    let builder = Pipeline::builder().device(Device::Cpu).preview_decoder(decoder);
    let pipe = builder.random(&ModelSizes::small(), 7).unwrap();
    let request = Request::generate("a cat").size(1024, 256).steps(1).seed(1);
    let (shown, _) = previews(&pipe, &request.preview(every_step(PreviewMethod::Tiny))).unwrap();
    assert_eq!(shown[0].1.dimensions(), (512, 128));
    let mask = kontext::Mask::rectangle(kontext::Size::new(512, 512), [200, 100, 40, 40]).unwrap();
    let request = Request::edit(RgbImage::new(512, 512), "a cat")
        .mask(mask.crop(16))
        .max_area(64 * 64)
        .steps(1);
    let plan = pipe.plan(&request).unwrap();
    let (shown, output) = previews(&pipe, &request.preview(every_step(PreviewMethod::Tiny))).unwrap();
    let target = plan.target.size();
    assert_eq!(shown[0].1.dimensions(), (target.width, target.height));
    assert_eq!(output.image.dimensions(), (512, 512));
}

#[test]
fn a_tiny_autoencoder_is_found_in_its_folder_and_another_one_is_refused() {
    let request = |method| {
        Request::generate("a cat")
            .size(32, 32)
            .steps(1)
            .preview(every_step(method))
    };
    let error = EMOJI.run(&request(PreviewMethod::Tiny)).unwrap_err().to_string();
    assert!(
        error.contains("in the folder `preview_decoder` of the model's"),
        "{error}"
    );
    let folder = common::copy(kontext::Layout::SingleFiles);
    let own = folder.path().join("preview_decoder");
    kontext_core::create_folder(&own).unwrap();
    std::fs::copy(TINY.path().join("tiny.safetensors"), own.join("taef1.safetensors")).unwrap();
    let load = || Pipeline::builder().device(Device::Cpu).load(folder.path());
    let pipe = load().unwrap();
    for (method, size) in [
        (PreviewMethod::Auto, (32, 32)),
        (PreviewMethod::Linear(PreviewFactors::Fitted), (4, 4)),
    ] {
        let (shown, _) = previews(&pipe, &request(method)).unwrap();
        assert_eq!(shown[0].1.dimensions(), size, "{method}");
        assert!(pipe.unload());
    }
    // Of the latents of Stable Diffusion.
    let four = TINY.path().join("four.safetensors");
    save_tiny(&four, &TinyConfig::taesd());
    let full = shipped::path("vae");
    for (path, words) in [(&four, "a tiny one of 4 in "), (&full, "a full one of 16 in ")] {
        let given = Pipeline::builder().device(Device::Cpu).preview_decoder(path);
        for error in [
            given.load(folder.path()).unwrap_err(),
            given.random(&ModelSizes::small(), 7).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(
                error.contains("a tiny autoencoder of 16 latent channels") && error.contains(words),
                "{error}"
            );
        }
    }
}

/// Returns a file of the shared assets, which are not part of the repository.
fn asset(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(format!("{}/../shared/assets/{name}", env!("CARGO_MANIFEST_DIR")));
    if !path.is_file() {
        println!("skipped: there is no {}", path.display());
        return None;
    }
    Some(path)
}

/// The table of docs/previews.md has 9.8, 13.9 and 14.4 levels over twelve photos of Kodak; a photo's own differ.
#[test]
fn the_maps_for_flux_are_near_the_colours_of_a_photo_that_taef1_encodes() {
    let Some(file) = asset("tiny-autoencoders/taef1_diffusers_layout_f16.safetensors") else {
        return;
    };
    let Some(photo) = asset("photos/skimage_coffee.png") else {
        return;
    };
    let photo = kontext::open_image(photo).unwrap();
    let photo = resize(&photo, 320, 208).unwrap();
    let pixels = kontext::crates::kontext_core::images::to_tensor(&photo, Kind::Float, Device::Cpu).unwrap();
    let latents = tiny(&file).encode_latents(&pixels).unwrap();
    let truth = averaged(&photo);
    let error = |map: LatentMap| {
        let image = of(&map, &latents);
        let shown = kontext::crates::kontext_core::images::from_tensor(&image, Default::default()).unwrap();
        rms(&shown[0], &truth)
    };
    let errors = [
        LatentMap::flux(),
        LatentMap::comfy_ui(),
        LatentMap::stable_diffusion_cpp(),
    ]
    .map(error);
    println!("{errors:.2?} of {:.1}", contrast(&truth));
    assert!(
        errors[0] < 16.0 && errors.iter().all(|error| *error < 24.0),
        "{errors:?}"
    );
    assert!(errors[0] < errors[1] && errors[0] < errors[2], "{errors:?}");
    assert!(contrast(&truth) > 40.0);
}
