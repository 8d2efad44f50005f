//! The whole pipeline on a small random model: layouts, determinism, options.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use image::{ImageFormat, Rgb, RgbImage};
use kontext::{
    Cancel, CfgMode, Conditioning, Conformance, Device, Error, Event, Kind, Layout, ModelPart, Pipeline, References,
    Request, Tensor, random_model,
};
use tempfile::TempDir;

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path().join("diffusers"), 7, Layout::Diffusers).unwrap();
    random_model(folder.path().join("single"), 7, Layout::SingleFiles).unwrap();
    folder
});
static PIPE: LazyLock<Pipeline> = LazyLock::new(|| load("diffusers"));

fn load(layout: &str) -> Pipeline {
    Pipeline::builder()
        .device(Device::Cpu)
        .max_sequence_length(32)
        // Every run encodes, so that tests that repeat a run repeat all of it.
        .encoding_cache(0)
        .load(FOLDER.path().join(layout))
        .unwrap()
}

fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x + y) as u8]))
}

/// Returns a small edit that takes a fraction of a second.
fn edit() -> Request {
    Request::edit(image(70, 50), "make it red")
        .max_area(64 * 64)
        .steps(2)
        .seed(3)
}

#[test]
fn the_same_weights_in_both_layouts_give_the_same_image() {
    let (diffusers, single) = (PIPE.run(&edit()).unwrap(), load("single").run(&edit()).unwrap());
    assert_eq!(diffusers.image, single.image);
    // And it is an image, not a constant.
    let first = diffusers.image.get_pixel(0, 0);
    assert!(diffusers.image.pixels().any(|p| p != first));
}

/// bf16 rounds by 1.1e-3 in the mean square; text encoders, transformer and autoencoder do so some hundred times in a
/// row, of which the latents see those of two steps.
#[test]
fn a_run_in_bf16_on_a_cpu_is_near_that_in_f32_and_is_planned() {
    let with = |kind| {
        let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(32);
        builder.compute(kind).load(FOLDER.path().join("diffusers")).unwrap()
    };
    let narrow = with(Kind::BFloat16);
    let plan = narrow.plan(&edit()).unwrap();
    assert_eq!(plan.compute.transformer, Kind::BFloat16);
    assert!(plan.to_string().contains("\narithmetic:  bf16\n"), "{plan}");
    let (got, expected) = (narrow.run(&edit()).unwrap(), PIPE.run(&edit()).unwrap());
    assert_eq!(expected.plan.compute.to_string(), "f32", "a small model");
    let difference = &got.latents - &expected.latents;
    let norm = |values: &ndarray::ArrayD<f32>| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    let error = norm(&difference) / norm(&expected.latents);
    assert!(error > 1e-5 && error < 2e-2, "{error:e}");
    let levels = got.image.iter().zip(expected.image.iter()).map(|(a, b)| a.abs_diff(*b));
    assert!(
        levels.clone().any(|level| level > 0) && levels.max() < Some(26),
        "a tenth of the range"
    );
    // f32 by name is what a small model has without it, to the byte.
    assert_eq!(with(Kind::Float).run(&edit()).unwrap().image, expected.image);
    // The latents of another program's run keep the dtype that it follows.
    let conforming = narrow.run(&edit().conform(Conformance::Diffusers)).unwrap();
    assert_eq!(conforming.plan.compute.text, Kind::BFloat16);
}

#[test]
fn ten_parallel_runs_equal_ten_serial_ones_byte_for_byte() {
    let request = |seed| edit().seed(seed).true_cfg(2.0).negative_prompt("blurred");
    let serial: Vec<RgbImage> = (0..10).map(|s| PIPE.run(&request(s)).unwrap().image).collect();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..10)
            .map(|s| scope.spawn(move || PIPE.run(&request(s)).unwrap().image))
            .collect();
        for (run, expected) in runs.into_iter().zip(&serial) {
            assert_eq!(run.join().unwrap().as_raw(), expected.as_raw());
        }
    });
    assert_ne!(serial[0], serial[1]);
}

#[test]
fn a_pipeline_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Pipeline>();
    shared::<Request>();
    shared::<Error>();
}

#[test]
fn an_edit_comes_back_at_the_size_it_went_in() {
    let out = PIPE.run(&edit()).unwrap();
    assert_eq!(out.image.dimensions(), (70, 50));
    assert_eq!(out.plan.references[0].grid, out.plan.target);
    let native = PIPE.run(&edit().native_size()).unwrap();
    assert_eq!(native.image.dimensions(), (80, 48));
}

#[test]
fn every_image_of_a_batch_is_the_one_of_its_seed() {
    let batch = PIPE.run(&edit().batch(2)).unwrap();
    assert_eq!((batch.images.len(), batch.seed), (2, 3));
    for (image, seed) in batch.images.iter().zip([3, 4]) {
        let alone = PIPE.run(&edit().seed(seed)).unwrap();
        // A batch sums in another order, which moves some values by a level.
        let distance = image
            .as_raw()
            .iter()
            .zip(alone.image.as_raw())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(distance <= Some(1), "seed {seed}: {distance:?} levels");
    }
}

#[test]
fn batched_guidance_equals_sequential_guidance() {
    let request = edit().true_cfg(3.0).negative_prompt("green").batch(2);
    let (one, two) = (
        PIPE.run(&request).unwrap(),
        PIPE.run(&request.clone().cfg_mode(CfgMode::Batched)).unwrap(),
    );
    for (a, b) in one.images.iter().zip(&two.images) {
        let distance = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(distance <= Some(1), "{distance:?} levels");
    }
}

#[test]
fn references_are_placed_as_the_plan_says() {
    let two = edit().reference(image(30, 60));
    let plan = PIPE.plan(&two).unwrap();
    let (first, second) = (&plan.references[0], &plan.references[1]);
    assert_eq!(
        (second.origin.t, second.origin.x, second.origin.y),
        (1, first.grid.cols, 0)
    );
    assert_eq!(
        PIPE.plan(&two.clone().references(References::Index))
            .unwrap()
            .references[1]
            .origin
            .t,
        2
    );
    let stitched = PIPE.plan(&two.clone().references(References::Stitch)).unwrap();
    // 70 x 50 next to 30 x 60 scaled to a height of 50.
    assert_eq!(stitched.references.len(), 1);
    assert_eq!(stitched.references[0].input.to_string(), "95x50");
    for references in [References::Offset, References::Index, References::Stitch] {
        PIPE.run(&two.clone().references(references)).unwrap();
    }
}

#[test]
fn little_strength_stays_near_the_image() {
    let original = Request::edit(image(64, 64), "").max_area(64 * 64).steps(8).seed(1);
    let plan = PIPE.plan(&original.clone().strength(0.25)).unwrap();
    assert_eq!(plan.schedule.steps(), 2);
    PIPE.run(&original.strength(0.25)).unwrap();
    let error = PIPE.run(&Request::generate("x").strength(0.5)).unwrap_err();
    assert!(error.to_string().contains("no image to start from"));
}

#[test]
fn events_tell_every_stage_and_a_cancelled_run_says_how_far_it_came() {
    let mut stages = Vec::new();
    PIPE.run_with(&edit().steps(3), |event| {
        stages.push(match event {
            Event::Planned { .. } => "planned".to_owned(),
            Event::Warning { warning } => warning.to_string(),
            Event::Encoded { .. } => "text".to_owned(),
            Event::Reference { .. } => "reference".to_owned(),
            Event::Noise { .. } => "noise".to_owned(),
            Event::Step { done, total, .. } => format!("{done}/{total}"),
            Event::Decoded { .. } => "decoded".to_owned(),
            _ => "?".to_owned(),
        });
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(
        stages,
        [
            "planned",
            "reference 1 is stretched by 19 %",
            "text",
            "reference",
            "noise",
            "1/3",
            "2/3",
            "3/3",
            "decoded"
        ]
    );

    let cancel = Cancel::new();
    let error = PIPE.run_with(&edit().steps(5), |event| {
        if matches!(event, Event::Step { done: 2, .. }) {
            cancel.cancel();
        }
        cancel.check()
    });
    let error = error.unwrap_err();
    assert!(error.is_cancelled());
    assert_eq!(error.to_string(), "cancelled after 2 of 5 steps");
}

#[test]
fn a_long_prompt_is_cut_and_the_cut_is_told() {
    let prompt = "word ".repeat(10_000);
    let mut cuts = Vec::new();
    PIPE.run_with(&Request::generate(prompt).size(32, 32).steps(1), |event| {
        if let Event::PromptTruncated { truncation } = event {
            cuts.push(truncation.clone());
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(
        cuts.iter().map(|c| c.encoder).collect::<Vec<_>>(),
        [ModelPart::T5, ModelPart::Clip]
    );
    assert!(cuts.iter().all(|c| c.text.len() > 40_000));
}

/// Runs a request and collects the prompts that it encoded, with those of T5 and CLIP that are unknown.
fn texts(request: &Request) -> (Vec<Conditioning>, Vec<(ModelPart, String)>) {
    let (mut encoded, mut texts) = (Vec::new(), Vec::new());
    PIPE.run_with(request, |event| {
        match event {
            Event::Encoded { conditioning, .. } => encoded.push(conditioning.clone()),
            Event::UnknownWords { unknown } => texts.push((unknown.encoder, unknown.texts.join(" "))),
            _ => {}
        }
        ControlFlow::Continue(())
    })
    .unwrap();
    (encoded, texts)
}

#[test]
fn clip_sees_the_prompt_and_t5_the_second_one() {
    let request = |prompt| Request::generate(prompt).size(32, 32).steps(1).seed(3);
    let encode = |request: &Request| texts(request).0;
    let [cup, hat] = ["a cup", "a hat"].map(|prompt| encode(&request(prompt)).remove(0));
    let is = |made: &Conditioning, clip: &Conditioning, t5: &Conditioning| {
        made.pooled.equal(&clip.pooled) && made.prompt_embeds.equal(&t5.prompt_embeds)
    };
    assert!(!cup.pooled.equal(&hat.pooled) && !cup.prompt_embeds.equal(&hat.prompt_embeds));
    // Both prompts, and the negative ones the other way round.
    let two = request("a cup").prompt_2("a hat").true_cfg(2.0);
    let made = encode(&two.clone().negative_prompt("a hat").negative_prompt_2("a cup"));
    assert!(made.len() == 2 && is(&made[0], &cup, &hat) && is(&made[1], &hat, &cup));
    // A second negative prompt is enough; CLIP then sees an empty one.
    let (empty, made) = (
        encode(&request("")).remove(0),
        encode(&two.clone().negative_prompt_2("a cup")),
    );
    assert!(made.len() == 2 && is(&made[1], &empty, &cup));
    assert_eq!(
        encode(&two.clone().negative_prompt_2("a cup").conform(Conformance::Bfl)).len(),
        1
    );
    // The image follows from both.
    let [one, other] = [two.true_cfg(1.0), request("a cup")].map(|request| PIPE.run(&request).unwrap());
    assert_ne!(one.latents, other.latents);
    assert_eq!(
        (one.prompt.as_str(), one.prompt_2.as_deref(), other.prompt_2),
        ("a cup", Some("a hat"), None)
    );
}

#[test]
fn text_outside_a_vocabulary_is_told_once_a_prompt() {
    let request = Request::generate("a 漢字 cup ☃, a 漢字").size(32, 32).steps(1);
    let pairs = [ModelPart::T5, ModelPart::Clip].map(|encoder| (encoder, "漢字 ☃".to_owned()));
    assert_eq!(texts(&request).1, pairs);
    // Each encoder is asked for its own text.
    assert_eq!(texts(&request.clone().prompt_2("a cup")).1, pairs[1..]);
    assert_eq!(texts(&request.clone().prompt("a cup")).1, []);
    let negative = request
        .prompt("a cup")
        .negative_prompt("é")
        .negative_prompt_2("a cup")
        .true_cfg(2.0);
    assert_eq!(texts(&negative).1, [(ModelPart::Clip, "é".to_owned())]);
}

#[test]
fn a_setting_that_a_warning_calls_ignored_changes_no_bit() {
    let tokens = PIPE.plan(&edit()).unwrap().target.tokens() as usize;
    let noise = ndarray::Array3::<f32>::ones((1, tokens, 64)).into_dyn();
    let bare = edit().max_area(64 * 64).steps(1);
    let sized = Request::edit(image(64, 64), "x").size(64, 64).steps(1).seed(3);
    let levels = Request::edit(image(64, 64), "x")
        .size(64, 64)
        .sigmas([1.0, 0.5])
        .seed(3);
    let bfl = sized.clone().conform(Conformance::Bfl);
    let unguided = {
        let mut sizes = kontext::ModelSizes::small();
        sizes.dit.guidance_embed = false;
        Pipeline::builder()
            .device(Device::Cpu)
            .max_sequence_length(8)
            .random(&sizes, 7)
            .unwrap()
    };
    for (pipe, with, without) in [
        (&*PIPE, bare.clone().negative_prompt("green"), bare.clone()),
        (&*PIPE, bare.clone().true_cfg(-3.0), bare.clone()),
        (&*PIPE, bfl.clone().true_cfg(3.0), bfl),
        (&*PIPE, bare.clone().cfg_mode(CfgMode::Batched), bare.clone()),
        (&*PIPE, levels.clone().steps(7), levels),
        (&*PIPE, sized.clone().max_area(999), sized),
        (&*PIPE, bare.clone().references(References::Index), bare.clone()),
        (
            &*PIPE,
            bare.clone().noise(noise.clone()).seed(9),
            bare.clone().noise(noise.clone()).seed(8),
        ),
        (&unguided, bare.clone().guidance(9.0), bare),
    ] {
        let mut warnings = Vec::new();
        let made = pipe.run_with(&with, |event| {
            if let Event::Warning { warning } = event {
                warnings.push(*warning);
            }
            ControlFlow::Continue(())
        });
        let (made, other) = (made.unwrap(), pipe.run(&without).unwrap());
        assert_eq!(warnings, made.plan.warnings);
        let more = warnings.iter().filter(|warning| !other.plan.warnings.contains(warning));
        assert_eq!(more.count(), 1, "{warnings:?}");
        assert!(
            made.latents == other.latents && made.image == other.image,
            "{warnings:?}"
        );
    }
}

#[test]
fn odd_images_and_an_empty_prompt_are_handled() {
    for (width, height) in [(1, 1), (20_000, 10), (3, 4000)] {
        let out = PIPE
            .run(&Request::edit(image(width, height), "").max_area(64 * 64).steps(1))
            .unwrap();
        assert_eq!(out.image.dimensions(), (width, height));
    }
}

#[test]
fn requests_out_of_range_are_refused_before_any_work() {
    let refused = |request: Request, words: &str| {
        let error = PIPE.plan(&request).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(edit().size(0, 64), "got 0");
    refused(edit().size(100, 64), "nearest: 96x64");
    refused(edit().size(1 << 20, 64), "1 to 8192 pixels");
    refused(edit().steps(0), "invalid steps: expected 1 to 1000, got 0");
    refused(edit().batch(0), "1 to 256 images");
    refused(edit().batch(usize::MAX), "1 to 256 images");
    refused(edit().true_cfg(1e300), "invalid true_cfg");
    refused(edit().max_area(3), "invalid max_area");
    refused(
        edit().guidance(f64::NAN),
        "invalid guidance: expected a value from -1000 to 1000, got NaN",
    );
    let joined = Request::edit(image(10, 20_000), "")
        .reference(image(20_000, 10))
        .references(References::Stitch);
    refused(joined, "put the smallest image first");
    refused(edit().strength(1.5), "invalid strength");
}

#[test]
fn the_seed_gives_the_starting_noise_of_torch_in_both_dtypes() {
    for (dtype, name) in [(Kind::Float, "f32"), (Kind::BFloat16, "bf16")] {
        let pipe = Pipeline::builder()
            .device(Device::Cpu)
            .dtype(dtype)
            .max_sequence_length(8)
            .load(FOLDER.path().join("diffusers"));
        let request = Request::generate("x")
            .size(32, 16)
            .max_area(32 * 16)
            .steps(1)
            .seed(7)
            .conform(Conformance::Diffusers);
        let mut noise = None;
        pipe.unwrap()
            .run_with(&request, |event| {
                if let Event::Noise { latents } = event {
                    noise = Some(latents.copy());
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        // 128 values: the first 100 of the fixture's 1023 are the same, because 16 are drawn at a time.
        let path = kontext_fixtures::reference("noise.safetensors");
        let long = kontext::Weights::open(path)
            .unwrap()
            .raw(&format!("{name}.seed7.n1023"))
            .unwrap();
        let expected = kontext::crates::kontext_sampler::pack(&long.narrow(0, 0, 128).reshape([1, 16, 2, 4])).unwrap();
        let noise = noise.unwrap();
        assert_eq!(noise.kind(), dtype);
        assert!(noise.equal(&expected), "{name}");
    }
}

#[test]
fn noise_of_the_callers_own_replaces_the_seed() {
    let tokens = PIPE.plan(&edit()).unwrap().target.tokens() as usize;
    let noise = ndarray::Array3::<f32>::zeros((1, tokens, 64)).into_dyn();
    let (a, b) = (
        PIPE.run(&edit().seed(1).noise(noise.clone())).unwrap(),
        PIPE.run(&edit().seed(2).noise(noise)).unwrap(),
    );
    assert_eq!(a.image, b.image);
    let wrong = ndarray::Array3::<f32>::zeros((1, tokens + 1, 64)).into_dyn();
    let error = PIPE.run(&edit().noise(wrong)).unwrap_err().to_string();
    assert!(
        error.starts_with("invalid shape of the noise: expected [1, "),
        "{error}"
    );
}

#[test]
fn a_saved_png_tells_what_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let out = PIPE.run(&edit().prompt_2("make it green")).unwrap();
    for name in ["a.png", "a.jpg", "a.webp"] {
        out.save(folder.path().join(name)).unwrap();
        assert_eq!(
            kontext::open_image(folder.path().join(name)).unwrap().dimensions(),
            (70, 50)
        );
        let format = ImageFormat::from_path(name).unwrap();
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        assert_eq!(out.encode(0, format).unwrap(), bytes);
        if format == ImageFormat::Png {
            assert_eq!(out.to_png().unwrap(), bytes);
            assert_eq!(kontext::image_from_bytes(&bytes).unwrap(), out.image);
        }
    }
    let error = out.encode(0, ImageFormat::Tiff).unwrap_err().to_string();
    assert_eq!(error, "invalid image format: expected PNG, JPEG or WebP, got Tiff");
    let error = out.encode(1, ImageFormat::Png).unwrap_err().to_string();
    assert_eq!(error, "invalid image's number: expected below 1, got 1");
    let decoder = png::Decoder::new(std::io::BufReader::new(
        std::fs::File::open(folder.path().join("a.png")).unwrap(),
    ));
    let reader = decoder.read_info().unwrap();
    let text = |key: &str| {
        reader
            .info()
            .utf8_text
            .iter()
            .find(|t| t.keyword == key)
            .unwrap()
            .get_text()
            .unwrap()
    };
    assert_eq!(
        (text("prompt"), text("seed"), text("steps")),
        ("make it red".into(), "3".into(), "2".into())
    );
    assert_eq!(text("prompt_2"), "make it green");
    assert_eq!(
        (text("guidance"), text("size"), text("model_size")),
        ("2.5".into(), "70x50".into(), "80x48".into())
    );
    let error = out.save(folder.path().join("a.tiff")).unwrap_err().to_string();
    assert!(error.contains(".png, .jpg or .webp"), "{error}");
    assert!(out.save(folder.path().join("no/a.png")).is_err());
}

#[test]
fn a_nan_in_the_weights_is_named_with_its_file() {
    let damages = [
        (
            "t5xxl",
            "encoder.final_layer_norm.weight",
            "encoding the prompt with T5",
        ),
        (
            "clip_l",
            "text_model.final_layer_norm.weight",
            "encoding the prompt with CLIP",
        ),
        ("flux1-kontext", "single_blocks.1.linear2.weight", "denoising step 1"),
        ("ae", "decoder.conv_out.weight", "decoding the image"),
    ];
    for (file, tensor, stage) in damages {
        let folder = tempfile::tempdir().unwrap();
        random_model(folder.path(), 7, Layout::SingleFiles).unwrap();
        let path = folder.path().join(format!("{file}.safetensors"));
        let weights = kontext::Weights::open(&path).unwrap();
        let tensors: Vec<(String, Tensor)> = weights
            .names()
            .into_iter()
            .map(|n| (n.clone(), weights.raw(&n).unwrap()))
            .collect();
        let damaged = tensors.iter().find(|(n, _)| n == tensor).unwrap();
        let _ = damaged.1.flatten(0, -1).get(5).fill_(f64::NAN);
        drop(weights);
        kontext::crates::kontext_formats::save(&path, &tensors, None).unwrap();
        let pipe = Pipeline::builder()
            .device(Device::Cpu)
            .max_sequence_length(16)
            .load(folder.path())
            .unwrap();
        let error = pipe
            .run(&Request::generate("x").size(32, 32).steps(2))
            .unwrap_err()
            .to_string();
        let start = format!("{stage} produced values that are not finite (tensor `{tensor}` of ");
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains(&format!("{file}.safetensors")), "{error}");
    }
}
