//! Tests that each option is listed in docs/options.md with its needs, and says so when it has no effect.

#![allow(missing_docs, clippy::panic, clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{copy, loras, model, options_doc};
use kontext::crates::kontext_formats::save;
use kontext::crates::kontext_sampler::CfgMode;
use kontext::image::{GrayImage, RgbImage};
use kontext::session::{KeepUnchanged, Session};
use kontext::{
    Attention, Checkpoint, Conformance, Device, Error, Fp8Products, Kind, Layout, LoraUse, MagCache, Mask, MaskContext,
    ModelDefaults, ModelSizes, Outpaint, Pipeline, PipelineBuilder, Placement, Preview, PreviewMethod, Quantize,
    ReferenceReuse, References, Request, Sampler, StepCache, Tensor, Warning, quantize,
};

/// Types whose options are listed, with the listing of the API that has them, and `true` for those whose fields are
/// their options; those of the others are set by methods.
const TYPES: [(&str, &str, bool); 16] = [
    ("kontext", "kontext::Request", true),
    ("kontext", "kontext::MaskSettings", true),
    ("kontext", "kontext::Outpaint", true),
    ("kontext", "kontext::PipelineBuilder", false),
    ("kontext", "kontext::LoraUse", false),
    ("kontext", "kontext::ModelDefaults", true),
    ("kontext", "kontext::session::Session", true),
    ("kontext", "kontext::session::KeepUnchanged", true),
    ("kontext", "kontext::session::DifferenceMap", true),
    ("kontext-core", "kontext_core::images::OpenOptions", false),
    ("kontext-bench", "kontext_bench::kontextbench::Bench", false),
    ("kontext-bench", "kontext_bench::kontextbench::Runner<'a>", false),
    ("kontext-bench", "kontext_bench::kontextbench::Metrics", false),
    ("kontext-bench", "kontext_bench::kontextbench::RunInfo", false),
    ("kontext-bench", "kontext_bench::kontextbench::Page<'a>", false),
    ("kontext-lora", "kontext_lora::LoraOptions", false),
];

/// Returns the public options of a type, from the listing of the public API.
fn public(listing: &str, path: &str, fields: bool) -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/api/{listing}.txt"));
    let text = std::fs::read_to_string(file).unwrap();
    let option = |line: &str| {
        let item = line.strip_prefix("pub ")?.trim_start_matches("const ");
        let is_setter = item.contains("(self") && item.ends_with(" -> Self");
        let member = match item.strip_prefix("fn ") {
            Some(method) if is_setter && !fields => method,
            None if fields => item,
            _ => return None,
        };
        let name = member.strip_prefix(path)?.strip_prefix("::")?;
        name.split([':', '(']).next().map(str::to_owned)
    };
    text.lines().filter_map(option).collect()
}

#[test]
fn every_option_is_listed_and_no_other() {
    let mut expected = BTreeSet::new();
    for (listing, path, fields) in TYPES {
        let of = path.rsplit("::").next().unwrap().trim_end_matches("<'a>");
        let options = public(listing, path, fields);
        assert!(!options.is_empty(), "{path}");
        // The same permissions as those of `LoraUse`.
        if of == "LoraOptions" {
            let listed = options_doc::options(|_| true);
            let known = |name: &String| listed.contains(&("LoraUse".to_owned(), name.clone()));
            assert!(options.iter().all(known), "{options:?}");
            continue;
        }
        expected.extend(options.into_iter().map(|name| (of.to_owned(), name)));
    }
    assert_eq!(options_doc::options(|_| true), expected);
}

/// Returns the options whose row has `word` in its last column.
fn with(word: &str) -> BTreeSet<(String, String)> {
    options_doc::options(|row| row.otherwise().contains(word))
}

fn builder() -> PipelineBuilder {
    Pipeline::builder().device(Device::Cpu)
}

fn edit() -> Request {
    Request::edit(RgbImage::new(64, 64), "a hat").max_area(64 * 64).steps(1)
}

/// Files that the tests make.
struct Files {
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let plain = model(Layout::SingleFiles);
        let checkpoint = Checkpoint::find(&plain).unwrap();
        quantize::transformer(&checkpoint, Quantize::Q8_0, files.path("packed.gguf")).unwrap();
        quantize::t5(&checkpoint, Quantize::Q8_0, files.path("t5.gguf")).unwrap();
        let mut tensors = common::tensors(&plain.join("flux1-kontext.safetensors"));
        tensors.retain(|(name, _)| !name.starts_with("guidance_in."));
        save(files.path("schnell.safetensors"), &tensors, None).unwrap();
        save(files.path("other.safetensors"), &other_lora(), None).unwrap();
        let tiny = loras::Model::new();
        std::fs::copy(tiny.lora("red"), files.path("red.safetensors")).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Returns a LoRA for a layer that the model does not have.
fn other_lora() -> Vec<(String, Tensor)> {
    let ones = |leaf: &str, shape: [i64; 2]| {
        let name = format!("transformer.absent_blocks.0.linear.{leaf}.weight");
        (name, Tensor::ones(shape, (Kind::Float, Device::Cpu)))
    };
    vec![ones("lora_A", [2, 8]), ones("lora_B", [8, 2])]
}

/// Returns an edit with a full mask of these settings.
fn masked(set: impl FnOnce(Mask) -> Mask) -> Request {
    let image = RgbImage::new(64, 64);
    let mask = Mask::new(GrayImage::from_pixel(64, 64, kontext::image::Luma([255])));
    Request::edit(image, "").mask(set(mask)).steps(1)
}

/// Builders and requests of which one option has no effect, by the option's type and name.
fn without_effect(files: &Files) -> Vec<([&'static str; 2], PipelineBuilder, Request)> {
    const REQUEST: &str = "Request";
    const BUILDER: &str = "PipelineBuilder";
    let wide = |mut request: Request| {
        request.width = Some(64);
        request
    };
    let by_levels = |mut request: Request| {
        request.steps = None;
        request.sigmas([1.0])
    };
    let diffusers = || {
        let request = Request::generate("").size(128, 128).max_area(64 * 64).steps(1);
        request.conform(Conformance::Diffusers)
    };
    let noise = || ndarray::ArrayD::zeros(vec![1, 16, 64]);
    vec![
        ([REQUEST, "negative_prompt"], builder(), edit().negative_prompt("red")),
        (
            [REQUEST, "negative_prompt_2"],
            builder(),
            edit().negative_prompt_2("red"),
        ),
        ([REQUEST, "true_cfg"], builder(), edit().true_cfg(0.5)),
        ([REQUEST, "prompt_weights"], builder(), diffusers().prompt_weights(true)),
        ([REQUEST, "cfg_mode"], builder(), edit().cfg_mode(CfgMode::Batched)),
        (
            [REQUEST, "guidance"],
            builder().transformer(files.path("schnell.safetensors")),
            edit().guidance(3.0),
        ),
        (
            [REQUEST, "guidance_schedule"],
            builder().transformer(files.path("schnell.safetensors")),
            edit().guidance_schedule([3.0]),
        ),
        ([REQUEST, "width"], builder(), diffusers()),
        ([REQUEST, "height"], builder(), diffusers()),
        ([REQUEST, "max_area"], builder(), wide(edit()).max_area(64 * 64)),
        ([REQUEST, "steps"], builder(), edit().sigmas([1.0])),
        (
            [REQUEST, "step_cache"],
            builder(),
            edit().step_cache(StepCache::MagCache(MagCache::default())),
        ),
        (
            [REQUEST, "reference_reuse"],
            builder(),
            Request::default()
                .size(64, 64)
                .steps(1)
                .reference_reuse(ReferenceReuse::default()),
        ),
        ([REQUEST, "shift"], builder(), by_levels(edit()).shift(2.0)),
        (
            [REQUEST, "register"],
            builder(),
            Request::generate("").size(64, 64).steps(1).register(),
        ),
        (
            ["MaskSettings", "grow"],
            builder(),
            masked(|mask| mask.grow(2.0)).conform(Conformance::Diffusers),
        ),
        (
            ["MaskSettings", "feather"],
            builder(),
            masked(|mask| mask.feather(2.0)).conform(Conformance::Diffusers),
        ),
        ([REQUEST, "seed"], builder(), edit().seed(1).noise(noise())),
        (
            [REQUEST, "native_size"],
            builder(),
            Request::edit(RgbImage::new(64, 64), "")
                .size(64, 64)
                .steps(1)
                .native_size(),
        ),
        ([REQUEST, "references"], builder(), edit().references(References::Index)),
        ([BUILDER, "fuse_loras"], builder().fuse_loras(true), edit()),
        (
            [BUILDER, "fp8_products"],
            builder().fp8_products(Fp8Products::Always),
            edit(),
        ),
        (
            [BUILDER, "fuse_loras"],
            builder()
                .fuse_loras(true)
                .use_lora(LoraUse::new(files.path("red.safetensors")).inactive()),
            edit(),
        ),
        (
            ["ModelDefaults", "guidance"],
            builder().transformer(files.path("schnell.safetensors")),
            edit(),
        ),
        (
            [BUILDER, "quantize"],
            builder()
                .transformer(files.path("packed.gguf"))
                .quantize(Quantize::Q4_0),
            edit(),
        ),
        (
            [BUILDER, "quantize"],
            builder()
                .transformer(files.path("packed.gguf"))
                .quantize(Quantize::Q4_0)
                .fuse_loras(true)
                .use_lora(LoraUse::new(files.path("red.safetensors")).inactive()),
            edit(),
        ),
        (
            [BUILDER, "quantize_t5"],
            builder().t5(files.path("t5.gguf")).quantize_t5(Quantize::Q4_0),
            edit(),
        ),
        (
            [BUILDER, "quantize"],
            builder().placement(Placement::Streamed).quantize(Quantize::Q8_0),
            edit(),
        ),
    ]
}

#[test]
fn an_option_without_effect_is_a_warning_before_and_during_the_run() {
    let mut names = BTreeSet::new();
    let with_guidance = copy(Layout::SingleFiles);
    let defaults = ModelDefaults {
        guidance: Some(3.0),
        ..ModelDefaults::default()
    };
    defaults.save(with_guidance.path()).unwrap();
    for ([of, option], builder, request) in without_effect(&Files::new()) {
        let folder = match of {
            "ModelDefaults" => with_guidance.path().to_owned(),
            _ => model(Layout::SingleFiles),
        };
        let planned = builder.plan(&folder, &request).unwrap().warnings;
        let mut told = Vec::new();
        let pipe = builder.load(&folder).unwrap();
        pipe.run_with(&request, |event| {
            if let kontext::Event::Warning { warning } = event {
                told.push(*warning);
            }
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        let word = option
            .trim_end_matches("_2")
            .trim_end_matches("_t5")
            .replace("negative_", "negative ")
            .replace("step_", "step ")
            .replace("reference_", "reference ");
        let word = if ["width", "height"].contains(&option) {
            "size".to_owned()
        } else {
            word
        };
        assert!(
            planned.iter().any(|warning| warning.to_string().contains(&word)),
            "{option}: {planned:?}"
        );
        assert_eq!(planned, told, "{option}");
        names.insert((of.to_owned(), option.to_owned()));
    }
    assert_eq!(names, with("warning"));
}

#[test]
fn options_with_effect_give_no_warning() {
    let folder = model(Layout::SingleFiles);
    let builder = builder().quantize(Quantize::Q4_0).quantize_t5(Quantize::Q4_0);
    assert_eq!(builder.plan(&folder, &edit()).unwrap().warnings, []);
    assert_eq!(builder.load(&folder).unwrap().plan(&edit()).unwrap().warnings, []);
}

#[test]
fn defaults_that_have_an_effect_give_no_warning() {
    let folder = copy(Layout::SingleFiles);
    let defaults = ModelDefaults {
        guidance: Some(3.0),
        steps: Some(2),
        ..ModelDefaults::default()
    };
    defaults.save(folder.path()).unwrap();
    let plan = builder().plan(folder.path(), &edit()).unwrap();
    assert_eq!((plan.guidance, plan.warnings), (Some(3.0), vec![]));
}

#[test]
fn a_permission_with_a_mistake_in_it_allows_nothing_and_one_that_is_not_needed_changes_nothing() {
    let (folder, files) = (model(Layout::SingleFiles), Files::new());
    let load = |lora: LoraUse| builder().use_lora(lora).load(&folder);
    let other = || LoraUse::new(files.path("other.safetensors")).allow_no_effect();
    let error = load(other().allow_unmatched("transformer.absent_blok*")).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        cause.contains("`transformer.absent_blocks.0.linear.lora_A.weight`"),
        "{cause}"
    );
    load(other().allow_unmatched("transformer.absent_blocks.*")).unwrap();
    let image = |lora: LoraUse| load(lora).unwrap().run(&edit().seed(1)).unwrap().image;
    let red = || LoraUse::new(files.path("red.safetensors"));
    assert_eq!(image(red()), image(red().allow_unmatched("*_norm.*").allow_no_effect()));
}

/// Runs an edit of a session of a black image.
fn turn(pipe: &Arc<Pipeline>, change: impl FnOnce(&mut Session)) -> Result<(), Error> {
    let mut session = pipe.session(RgbImage::new(64, 64));
    session.defaults = Request::default().max_area(64 * 64).steps(1);
    change(&mut session);
    session.edit("a hat").map(drop)
}

#[test]
fn an_option_that_cannot_act_is_refused_with_its_name() {
    let (folder, files) = (model(Layout::SingleFiles), Files::new());
    let random = |builder: PipelineBuilder| builder.random(&ModelSizes::small(), 7).map(drop);
    let plan = |request: Request| builder().plan(&folder, &request).map(drop);
    let run = |request: Request| builder().load(&folder)?.run(&request).map(drop);
    let path = folder.join("ae.safetensors");
    let array = || ndarray::ArrayD::zeros(vec![1, 3, 64]);
    let no_lora = files.path("other.safetensors");
    let red = || LoraUse::new(files.path("red.safetensors"));
    let load = |lora: LoraUse| builder().use_lora(lora).load(&folder).map(drop);
    let pipe = Arc::new(builder().load(&folder).unwrap());
    const BUILDER: &str = "PipelineBuilder";
    let refused = [
        (
            ["Request", "image_latents"],
            plan(Request::generate("").image_latents(array())),
        ),
        (["Request", "strength"], plan(Request::generate("").strength(0.5))),
        (["Request", "mask"], plan(edit().mask(GrayImage::new(64, 64)))),
        (["Request", "outpaint"], plan(edit().outpaint(Outpaint::ratio(1, 1)))),
        (
            ["MaskSettings", "context"],
            plan(masked(|mask| mask.context(MaskContext::References))),
        ),
        (
            ["MaskSettings", "crop"],
            plan(masked(|mask| mask.crop(4)).conform(Conformance::Diffusers)),
        ),
        (
            ["Outpaint", "extent"],
            plan(edit().outpaint(Outpaint::sides(0, 0, 0, 0))),
        ),
        (
            ["Request", "reference_reuse"],
            plan(
                edit()
                    .step_cache(StepCache::MagCache(MagCache::default()))
                    .reference_reuse(ReferenceReuse::region()),
            ),
        ),
        (["Request", "width"], plan(Request::generate("").size(50, 64))),
        (["Request", "height"], plan(Request::generate("").size(64, 50))),
        (["Request", "max_area"], plan(edit().conform(Conformance::Bfl))),
        (
            ["Request", "step_cache"],
            plan(
                edit()
                    .steps(4)
                    .sampler(Sampler::Heun)
                    .step_cache(StepCache::MagCache(MagCache::default())),
            ),
        ),
        (
            ["Request", "reference_reuse"],
            plan(
                edit()
                    .steps(4)
                    .sampler(Sampler::Heun)
                    .reference_reuse(ReferenceReuse::default()),
            ),
        ),
        (
            ["Request", "guidance_schedule"],
            plan(edit().guidance_schedule([3.0, 2.0])),
        ),
        (["Request", "noise"], run(edit().noise(array()))),
        (["Request", "loras"], run(edit().lora("absent", 1.0))),
        (
            ["Request", "preview"],
            run(edit().preview(Preview::default().method(PreviewMethod::Tiny))),
        ),
        (
            [BUILDER, "device"],
            builder().device(Device::Cuda(99)).load(&folder).map(drop),
        ),
        (
            [BUILDER, "compute"],
            builder().compute(Kind::Half).load(&folder).map(drop),
        ),
        ([BUILDER, "lora"], builder().lora(&no_lora, 1.0).load(&folder).map(drop)),
        (
            [BUILDER, "use_lora"],
            builder().use_lora(&no_lora).load(&folder).map(drop),
        ),
        ([BUILDER, "preview_decoder"], random(builder().preview_decoder(&path))),
        (
            [BUILDER, "attention"],
            builder().attention(Attention::CuDnn).load(&folder).map(drop),
        ),
        ([BUILDER, "fuse_loras"], random(builder().fuse_loras(true))),
        (
            [BUILDER, "fp8_products"],
            random(builder().fp8_products(Fp8Products::Never)),
        ),
        ([BUILDER, "placement"], random(builder().placement(Placement::Staged))),
        ([BUILDER, "memory_budget"], random(builder().memory_budget(1 << 40))),
        ([BUILDER, "quantize"], random(builder().quantize(Quantize::Q8_0))),
        ([BUILDER, "quantize_t5"], random(builder().quantize_t5(Quantize::Q8_0))),
        ([BUILDER, "transformer"], random(builder().transformer(&path))),
        ([BUILDER, "vae"], random(builder().vae(&path))),
        ([BUILDER, "clip"], random(builder().clip(&path))),
        ([BUILDER, "t5"], random(builder().t5(&path))),
        ([BUILDER, "clip_tokenizer"], random(builder().clip_tokenizer(&path))),
        ([BUILDER, "t5_tokenizer"], random(builder().t5_tokenizer(&path))),
        (
            ["LoraUse", "layer_scale"],
            load(red().layer_scale("singel_blocks.*", 0.5)),
        ),
        (
            ["LoraUse", "named"],
            builder().use_lora(red()).use_lora(red()).load(&folder).map(drop),
        ),
        (
            ["Session", "keep_unchanged"],
            turn(&pipe, |session| {
                session.keep_unchanged = Some(KeepUnchanged::default());
                session.defaults.native_size = true;
                session.defaults.width = Some(32);
            }),
        ),
        (
            ["Session", "defaults"],
            turn(&pipe, |session| {
                session.defaults.image_latents = Some(ndarray::ArrayD::zeros(vec![1, 16, 64]));
            }),
        ),
        (
            ["KeepUnchanged", "Mask"],
            turn(&pipe, |session| {
                session.keep_unchanged = Some(KeepUnchanged::Mask(GrayImage::new(64, 63)));
            }),
        ),
    ];
    let mut names = BTreeSet::new();
    for ([of, option], result) in refused {
        let error = result.unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidArgument { .. } | Error::Device { .. } | Error::Checkpoint { .. }
            ),
            "{option}: {error:?}"
        );
        names.insert((of.to_owned(), option.to_owned()));
    }
    assert_eq!(names, with("refused"));
}

#[test]
fn quantisation_acts_on_fused_layers_of_packed_and_streamed_weights_and_gives_no_warning() {
    let (folder, files) = (model(Layout::SingleFiles), Files::new());
    let ones = |leaf: &str, shape: [i64; 2]| {
        let name = format!("transformer.transformer_blocks.0.attn.to_out.0.{leaf}.weight");
        (name, Tensor::ones(shape, (Kind::Float, Device::Cpu)))
    };
    let lora = files.path("ink.safetensors");
    save(&lora, &[ones("lora_A", [2, 128]), ones("lora_B", [128, 2])], None).unwrap();
    for builder in [
        builder().placement(Placement::Streamed),
        builder().transformer(files.path("packed.gguf")),
    ] {
        let builder = builder.lora(&lora, 0.1).fuse_loras(true);
        let image = |builder: &PipelineBuilder| builder.load(&folder).unwrap().run(&edit().seed(1)).unwrap().image;
        let quantised = builder.clone().quantize(Quantize::Q4_0);
        assert_eq!(quantised.plan(&folder, &edit()).unwrap().warnings, []);
        assert_ne!(image(&quantised), image(&builder));
    }
}

#[test]
fn a_plan_under_automatic_placement_warns_as_the_placement_that_a_load_chooses() {
    let folder = model(Layout::SingleFiles);
    let builder = builder().quantize(Quantize::Q8_0);
    assert_eq!(builder.plan(&folder, &edit()).unwrap().warnings, []);
    // Nothing fits one byte, and the last placement streams.
    let streamed = builder.memory_budget(1);
    let planned = streamed.plan(&folder, &edit()).unwrap().warnings;
    assert!(matches!(planned[..], [Warning::QuantizeIgnored { .. }]), "{planned:?}");
    assert_eq!(streamed.load(&folder).unwrap().plan(&edit()).unwrap().warnings, planned);
}

#[test]
fn a_plan_for_a_device_that_is_not_here_needs_none() {
    let folder = model(Layout::SingleFiles);
    let there = builder().device(Device::Cuda(99));
    assert_eq!(there.plan(&folder, &edit()).unwrap().warnings, []);
    let quantised = there.quantize(Quantize::Q8_0).quantize_t5(Quantize::Q8_0);
    assert_eq!(quantised.plan(&folder, &edit()).unwrap().warnings, []);
}

#[test]
fn an_option_of_files_is_refused_before_random_weights_are_drawn() {
    let mut sizes = ModelSizes::small();
    sizes.dit.heads = 0;
    let error = builder().quantize(Quantize::Q8_0).random(&sizes, 7).unwrap_err();
    assert!(error.to_string().starts_with("invalid quantize"), "{error}");
    assert!(builder().random(&sizes, 7).is_err());
}

#[test]
fn parts_are_assembled_on_their_own_device_and_with_defaults_in_range() {
    let assemble = |builder: PipelineBuilder, guidance: f64| {
        let mut parts = self::builder().random_parts(&ModelSizes::small(), 7).unwrap();
        parts.defaults.guidance = Some(guidance);
        builder.assemble(parts).map(drop).map_err(|error| error.to_string())
    };
    assemble(builder(), 3.0).unwrap();
    assert_eq!(
        assemble(builder().device(Device::Cuda(0)), 3.0).unwrap_err(),
        "invalid device: expected that of the parts, Cpu, or none, got Cuda(0)"
    );
    let error = assemble(builder(), 1e300).unwrap_err();
    assert!(
        error.starts_with("invalid guidance: expected a number from -1000 to 1000, got 1000000"),
        "{error}"
    );
    let error = builder()
        .quantize(Quantize::Q8_0)
        .random_parts(&ModelSizes::small(), 7)
        .unwrap_err();
    assert!(error.to_string().starts_with("invalid quantize: "), "{error}");
}
