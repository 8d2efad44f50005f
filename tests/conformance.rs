//! Every row of the table of [`Conformance`], on a small random model.
//!
//! The stages of a run without weights are compared with black-forest-labs/flux's own functions
//! (`tests/reference/parts/bfl.py`), those with weights with the parts of the model, called as the mode
//! specifies. All comparisons are exact.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use image::{Rgb, RgbImage};
use kontext::crates::kontext_core::{images, noise};
use kontext::crates::kontext_dit::RunInput;
use kontext::crates::kontext_nn::GroupNorm;
use kontext::crates::kontext_sampler::ids::{Origin, grid_ids};
use kontext::crates::kontext_sampler::{integrate, pack, unpack};
use kontext::crates::kontext_text::{ClipEncoder, T5Encoder, Tokenizer};
use kontext::{
    Autoencoder, Checkpoint, Conditioning, Conformance, Device, Dit, Event, Kind, Layout, ModelDefaults, Output, Parts,
    Pipeline, Request, Size, Tensor, TextEncoder, Threads, Tokens, Weights, random_model,
};
use tempfile::TempDir;

const MODES: [Conformance; 3] = [Conformance::Native, Conformance::Diffusers, Conformance::Bfl];
const KINDS: [Kind; 2] = [Kind::Float, Kind::BFloat16];
/// Replaces the preferred sizes of about a megapixel, to keep runs short.
const SMALL: [Size; 3] = [Size::new(32, 48), Size::new(32, 32), Size::new(48, 32)];

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path(), 7, Layout::Diffusers).unwrap();
    folder
});

fn parts(dtype: Kind, sizes: &[Size]) -> Parts {
    let checkpoint = Checkpoint::find(FOLDER.path()).unwrap();
    let (weights, config) = checkpoint.open_transformer().unwrap();
    let clip = ClipEncoder::open(&checkpoint.clip, Kind::Float, Device::Cpu).unwrap();
    let t5 = T5Encoder::open(&checkpoint.t5, Kind::Float, Device::Cpu).unwrap();
    let tokenizer = |path| Tokenizer::open(path).unwrap();
    let text = TextEncoder::new(
        clip,
        tokenizer(&checkpoint.clip_tokenizer),
        t5,
        tokenizer(&checkpoint.t5_tokenizer),
    );
    Parts {
        text: text.unwrap().max_sequence_length(16),
        dit: Dit::new(&weights.at_most(dtype), &config, |_| ()).unwrap(),
        vae: Autoencoder::open(&checkpoint.vae, Kind::Float, Device::Cpu).unwrap(),
        shift: checkpoint.shift(&config).unwrap(),
        defaults: ModelDefaults {
            sizes: (!sizes.is_empty()).then(|| sizes.iter().map(|s| [s.width, s.height]).collect()),
            ..ModelDefaults::default()
        },
    }
}

fn pipeline(dtype: Kind, sizes: &[Size]) -> Pipeline {
    // The tests compute with this number themselves; another adds up in another order.
    let threads = Threads::Fixed(kontext::tch::get_num_threads() as usize);
    let builder = Pipeline::builder().dtype(dtype).threads(threads);
    builder.assemble(parts(dtype, sizes)).unwrap()
}

/// A pipeline with the published preferred sizes (no own ones), for plans.
static PLANNER: LazyLock<Pipeline> = LazyLock::new(|| pipeline(Kind::Float, &[]));

fn bfl() -> Weights {
    Weights::open(kontext_fixtures::reference("bfl.safetensors")).unwrap()
}

fn image(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 5) as u8, (x + y) as u8]))
}

/// Converts an 8-bit tensor [H, W, 3] to an image.
fn to_image(levels: &Tensor) -> RgbImage {
    let (height, width) = (levels.size()[0] as u32, levels.size()[1] as u32);
    RgbImage::from_raw(width, height, Vec::try_from(levels.flatten(0, -1)).unwrap()).unwrap()
}

/// Returns a small edit, of an image near the preferred size 48x32. In mode `Diffusers`, the default target
/// would be square and large.
fn edit(mode: Conformance) -> Request {
    let edit = Request::edit(image(50, 34), "make it red")
        .steps(3)
        .seed(7)
        .conform(mode);
    if mode == Conformance::Diffusers {
        edit.size(48, 32).max_area(48 * 32)
    } else {
        edit
    }
}

/// The tensors of a run.
#[derive(Default)]
struct Stages {
    conditioning: Option<Conditioning>,
    reference: Option<Tensor>,
    noise: Option<Tensor>,
    steps: Vec<Tensor>,
}

fn stages(pipe: &Pipeline, request: &Request) -> (Stages, Output) {
    let mut stages = Stages::default();
    let output = pipe.run_with(request, |event| {
        match event {
            Event::Encoded { conditioning, .. } => stages.conditioning = Some(conditioning.clone()),
            Event::Reference { latents, .. } => stages.reference = Some(latents.copy()),
            Event::Noise { latents } => stages.noise = Some(latents.copy()),
            Event::Step { latents, .. } => stages.steps.push(latents.copy()),
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (stages, output.unwrap())
}

#[test]
fn noise_is_drawn_in_the_dtype_of_the_mode() {
    for dtype in KINDS {
        let pipe = pipeline(dtype, &SMALL);
        for mode in MODES {
            let noise = stages(&pipe, &edit(mode)).0.noise.unwrap();
            let kind = if mode == Conformance::Native {
                Kind::Float
            } else {
                dtype
            };
            let drawn = noise::randn(&[1, 16, 4, 6], 7, kind, Device::Cpu).unwrap();
            assert_eq!(noise.kind(), kind, "{mode:?}, {dtype:?}");
            assert!(noise.equal(&pack(&drawn).unwrap()), "{mode:?}, {dtype:?}");
        }
    }
}

#[test]
fn the_noise_of_a_size_that_is_rounded_up_is_that_of_bfl() {
    let fixture = bfl();
    for (dtype, asked, name) in [
        (Kind::BFloat16, [100, 50], "100x50.bf16"),
        (Kind::Float, [33, 17], "33x17.f32"),
    ] {
        let request = Request::generate("x")
            .size(asked[0], asked[1])
            .steps(1)
            .seed(7)
            .conform(Conformance::Bfl);
        let noise = stages(&pipeline(dtype, &SMALL), &request).0.noise.unwrap();
        let expected = pack(&fixture.raw(&format!("noise.{name}")).unwrap()).unwrap();
        assert!(noise.equal(&expected), "{name}");
    }
}

#[test]
fn the_preferred_size_of_a_image_is_picked_by_the_rule_of_the_mode() {
    // An image on which the three rules disagree.
    let fitted = MODES.map(|mode| {
        let request = Request::edit(image(26, 41), "").conform(mode);
        PLANNER.plan(&request).unwrap().references[0].fitted.to_string()
    });
    assert_eq!(fitted, ["832x1248", "720x1456", "800x1328"]);
}

#[test]
fn a_reference_is_resized_and_packed_as_by_bfl() {
    let fixture = bfl();
    let raw = |name: &str| fixture.raw(name).unwrap();
    let original = to_image(&raw("context.picture"));
    let plan = pipeline(Kind::Float, &[Size::new(48, 32)]);
    let plan = plan
        .plan(&Request::edit(&original, "").conform(Conformance::Bfl))
        .unwrap();
    let Size { width, height } = plan.references[0].fitted;
    let fitted = images::resize(&original, width, height).unwrap();
    assert_eq!(fitted, to_image(&raw("context.fitted")));
    // The fixture has patches of the pixels instead of the autoencoder's latents.
    let pixels = images::to_tensor(&fitted, Kind::Float, Device::Cpu).unwrap();
    let patches = pixels.pixel_unshuffle(8).narrow(1, 0, 16).to_kind(Kind::BFloat16);
    assert!(pack(&patches).unwrap().equal(&raw("context.img")));
    let reference = &plan.references[0];
    assert!(
        grid_ids(reference.grid, reference.origin)
            .unwrap()
            .unsqueeze(0)
            .equal(&raw("context.ids"))
    );
}

#[test]
fn a_reference_is_encoded_from_its_preferred_size_in_every_mode() {
    let vae = parts(Kind::Float, &[]).vae;
    let fitted = images::resize(&image(50, 34), 48, 32).unwrap();
    let pixels = images::to_tensor(&fitted, Kind::Float, Device::Cpu).unwrap();
    let encode = || vae.encode_latents(&pixels).unwrap();
    let (own, theirs) = (encode(), GroupNorm::by_libtorch_in(encode));
    for dtype in KINDS {
        let pipe = pipeline(dtype, &SMALL);
        for mode in MODES {
            // On a CPU all modes compute in f32; the reference modes round the result to the run's dtype.
            let latents = if mode == Conformance::Native { &own } else { &theirs };
            let expected = latents.to_kind(mode.latents_kind(dtype));
            let reference = stages(&pipe, &edit(mode)).0.reference.unwrap();
            assert!(
                reference.kind() == expected.kind() && reference.equal(&expected),
                "{mode:?}, {dtype:?}"
            );
        }
    }
}

#[test]
fn the_autoencoder_runs_in_f32_in_mode_bfl_and_in_the_runs_dtype_else() {
    for kind in KINDS {
        assert_eq!(Conformance::Native.vae_kind(kind), kind);
        assert_eq!(Conformance::Diffusers.vae_kind(kind), kind);
        assert_eq!(Conformance::Bfl.vae_kind(kind), Kind::Float);
    }
}

#[test]
fn the_target_is_the_references_grid_or_in_mode_diffusers_a_square_megapixel() {
    let target = |request: Request| MODES.map(|m| PLANNER.plan(&request.clone().conform(m)).unwrap().target.size());
    let cat = Request::edit(image(90, 160), "");
    assert_eq!(
        target(cat.clone()).map(|s| s.to_string()),
        ["752x1392", "1024x1024", "752x1392"]
    );
    // A preferred size that diffusers changes.
    assert_eq!(
        target(cat.size(672, 1568)).map(|s| s.to_string()),
        ["672x1568", "656x1552", "672x1568"]
    );
}

#[test]
fn a_side_that_is_no_multiple_of_16_is_refused_rescaled_or_rounded_up() {
    let plan = |mode| PLANNER.plan(&Request::generate("").size(1000, 700).conform(mode));
    assert!(
        plan(Conformance::Native)
            .unwrap_err()
            .to_string()
            .contains("nearest: 1008x704")
    );
    assert_eq!(
        plan(Conformance::Diffusers).unwrap().target.size().to_string(),
        "1216x848"
    );
    assert_eq!(plan(Conformance::Bfl).unwrap().target.size().to_string(), "1008x704");
}

#[test]
fn sides_asked_of_mode_bfl_give_the_image_that_bfl_gives() {
    let rows: Vec<Vec<i32>> = Vec::try_from(bfl().raw("targets").unwrap()).unwrap();
    for row in rows {
        let [width, height, asked_width, asked_height, target @ ..] = &row[..] else {
            panic!("{row:?}")
        };
        let mut request = Request::edit(RgbImage::new(*width as u32, *height as u32), "").conform(Conformance::Bfl);
        request.width = (*asked_width > 0).then_some(*asked_width as u32);
        request.height = (*asked_height > 0).then_some(*asked_height as u32);
        let output = PLANNER.plan(&request).unwrap().output;
        assert_eq!([output.width as i32, output.height as i32], target, "{row:?}");
    }
}

#[test]
fn a_image_comes_back_at_the_inputs_size_only_in_this_librarys_mode() {
    let pipe = pipeline(Kind::Float, &SMALL);
    let sizes = MODES.map(|mode| pipe.run(&edit(mode)).unwrap().image.dimensions());
    assert_eq!(sizes, [(50, 34), (48, 32), (48, 32)]);
}

#[test]
fn latents_between_steps_have_the_dtype_of_the_mode() {
    for dtype in KINDS {
        let pipe = pipeline(dtype, &SMALL);
        for mode in MODES {
            let kind = if mode == Conformance::Native {
                Kind::Float
            } else {
                dtype
            };
            assert!(
                stages(&pipe, &edit(mode)).0.steps.iter().all(|s| s.kind() == kind),
                "{mode:?}, {dtype:?}"
            );
        }
    }
}

#[test]
fn a_run_is_made_of_euler_steps_at_the_times_and_guidance_of_the_mode() {
    for dtype in KINDS {
        let (pipe, dit) = (pipeline(dtype, &SMALL), parts(dtype, &[]).dit);
        for mode in MODES {
            let (stages, Output { plan, .. }) = stages(&pipe, &edit(mode));
            let reference = &plan.references[0];
            let ids = grid_ids(reference.grid, reference.origin).unwrap();
            let run = dit.prepare(&RunInput {
                conditioning: &stages.conditioning.unwrap(),
                target_ids: &grid_ids(plan.target, Origin { t: 0, y: 0, x: 0 }).unwrap(),
                context: Some(&Tokens::new(pack(&stages.reference.unwrap()).unwrap(), ids).unwrap()),
                // The tests of kontext-sampler compare their values with the references'.
                times: &plan.schedule.embedded_times(dtype),
                guidance: Some(plan.schedule.embedded_guidance(mode.default_guidance(), dtype)),
            });
            let run = run.unwrap();
            let velocity =
                |x: &Tensor, step| Ok(dit.forward(&run, step, &x.to_kind(Kind::Float)).unwrap().to_kind(dtype));
            let mut steps = stages.steps.iter();
            let end = integrate(&stages.noise.unwrap(), &plan.schedule, dtype, velocity, |step| {
                assert!(
                    step.latents.equal(steps.next().unwrap()),
                    "{mode:?}, {dtype:?}, step {}",
                    step.done
                );
                ControlFlow::Continue(())
            });
            assert!(end.is_ok() && steps.next().is_none());
        }
    }
}

#[test]
fn levels_are_cut_off_in_mode_bfl_and_rounded_else() {
    let vae = parts(Kind::Float, &[]).vae;
    let pipe = pipeline(Kind::Float, &SMALL);
    for mode in MODES {
        let (stages, output) = stages(&pipe, &edit(mode).native_size());
        let latents = unpack(stages.steps.last().unwrap(), output.plan.target).unwrap();
        let decode = || vae.decode(&latents).unwrap();
        let decoded = match mode {
            Conformance::Native => decode(),
            Conformance::Diffusers | Conformance::Bfl => GroupNorm::by_libtorch_in(decode),
        };
        let values: Vec<f32> = Vec::try_from(decoded.permute([0, 2, 3, 1]).flatten(0, -1)).unwrap();
        let level = |x: &f32| match mode {
            Conformance::Native | Conformance::Diffusers => ((x.clamp(-1.0, 1.0) / 2.0 + 0.5) * 255.0).round() as u8,
            Conformance::Bfl => (127.5 * (x.clamp(-1.0, 1.0) + 1.0)) as u8,
        };
        assert_eq!(
            output.image.as_raw(),
            &values.iter().map(level).collect::<Vec<_>>(),
            "{mode:?}"
        );
    }
}

#[test]
fn all_levels_and_values_beyond_them_are_cut_off_as_by_bfl() {
    let fixture = bfl();
    let levels = images::from_tensor(&fixture.raw("values").unwrap(), images::Rounding::Down).unwrap();
    assert_eq!(levels, [to_image(&fixture.raw("levels").unwrap())]);
}

#[test]
fn steps_and_guidance_default_to_those_of_the_mode() {
    let defaults = MODES.map(|mode| {
        let plan = PLANNER.plan(&Request::generate("").conform(mode)).unwrap();
        (plan.schedule.steps(), plan.guidance.unwrap())
    });
    let command_line: Vec<f64> = Vec::try_from(bfl().raw("defaults").unwrap()).unwrap();
    assert_eq!(
        defaults,
        [(28, 2.5), (28, 3.5), (command_line[0] as usize, command_line[1])]
    );
    assert_eq!(defaults[2], (30, 2.5));
}

#[test]
fn an_empty_second_prompt_is_the_first_in_mode_diffusers() {
    let pipe = pipeline(Kind::Float, &SMALL);
    let encode = |request: Request| stages(&pipe, &request).0.conditioning.unwrap().prompt_embeds;
    for mode in MODES {
        let (red, empty) = (encode(edit(mode)), encode(edit(mode).prompt("")));
        let second = encode(edit(mode).prompt_2(""));
        assert!(!red.equal(&empty));
        assert!(
            second.equal(if mode == Conformance::Diffusers { &red } else { &empty }),
            "{mode:?}"
        );
    }
}

#[test]
fn true_cfg_without_a_negative_prompt_is_ours() {
    let runs = MODES.map(|mode| {
        PLANNER
            .plan(&Request::generate("").true_cfg(2.0).conform(mode))
            .unwrap()
            .runs_per_step
    });
    assert_eq!(runs, [2, 1, 1]);
}
