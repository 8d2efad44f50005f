//! Tests that each option is listed in docs/options.md with its needs, and says so when it has no effect.

#![allow(missing_docs, clippy::panic, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::model;
use kontext::crates::kontext_formats::save;
use kontext::crates::kontext_sampler::CfgMode;
use kontext::image::RgbImage;
use kontext::{
    Checkpoint, Conformance, Device, Error, Kind, Layout, ModelSizes, Pipeline, PipelineBuilder, Placement, Quantize,
    References, Request, Tensor, Warning, quantize,
};

/// Rows of the tables: options to the text of their last column.
fn rows() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(root().join("docs/options.md")).unwrap();
    let mut rows = BTreeMap::new();
    let (library, _programs) = text.split_once("## Programs").unwrap();
    for line in library.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [options, _, otherwise] = cells[..] else {
            panic!("{line}")
        };
        for option in options.split(", ") {
            rows.insert(option.trim_matches('`').to_owned(), otherwise.to_owned());
        }
    }
    rows
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Names of the public options, from the listing of the public API.
fn public() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("docs/api/kontext.txt")).unwrap();
    let option = |line: &str| {
        let field = line
            .strip_prefix("pub kontext::Request::")
            .and_then(|rest| rest.split_once(':'));
        let setter = line
            .strip_prefix("pub fn kontext::PipelineBuilder::")
            .filter(|rest| rest.ends_with("-> Self"))
            .and_then(|rest| rest.split_once('('))
            .filter(|(name, _)| !["clone", "default"].contains(name));
        field.or(setter).map(|(name, _)| name.to_owned())
    };
    text.lines().filter_map(option).collect()
}

#[test]
fn every_option_is_listed_and_no_other() {
    let (mut listed, mut public): (Vec<String>, _) = (rows().into_keys().collect(), public());
    listed.sort();
    public.sort();
    public.dedup();
    assert_eq!(listed, public);
}

/// Returns the options whose row has `word` in its last column.
fn with(word: &str) -> Vec<String> {
    let rows = rows().into_iter();
    rows.filter(|(_, otherwise)| otherwise.contains(word))
        .map(|(option, _)| option)
        .collect()
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

/// Builders and requests of which one option has no effect, by the option's name.
fn without_effect(files: &Files) -> Vec<(&'static str, PipelineBuilder, Request)> {
    let wide = |mut request: Request| {
        request.width = Some(64);
        request
    };
    let diffusers = || {
        let request = Request::generate("").size(128, 128).max_area(64 * 64).steps(1);
        request.conform(Conformance::Diffusers)
    };
    let noise = || ndarray::ArrayD::zeros(vec![1, 16, 64]);
    vec![
        ("negative_prompt", builder(), edit().negative_prompt("red")),
        ("negative_prompt_2", builder(), edit().negative_prompt_2("red")),
        ("true_cfg", builder(), edit().true_cfg(0.5)),
        ("cfg_mode", builder(), edit().cfg_mode(CfgMode::Batched)),
        (
            "guidance",
            builder().transformer(files.path("schnell.safetensors")),
            edit().guidance(3.0),
        ),
        ("width", builder(), diffusers()),
        ("height", builder(), diffusers()),
        ("max_area", builder(), wide(edit()).max_area(64 * 64)),
        ("steps", builder(), edit().sigmas([1.0])),
        ("seed", builder(), edit().seed(1).noise(noise())),
        (
            "native_size",
            builder(),
            Request::edit(RgbImage::new(64, 64), "")
                .size(64, 64)
                .steps(1)
                .native_size(),
        ),
        ("references", builder(), edit().references(References::Index)),
        ("fuse_loras", builder().fuse_loras(true), edit()),
        (
            "quantize",
            builder()
                .transformer(files.path("packed.gguf"))
                .quantize(Quantize::Q4_0),
            edit(),
        ),
        (
            "quantize_t5",
            builder().t5(files.path("t5.gguf")).quantize_t5(Quantize::Q4_0),
            edit(),
        ),
        (
            "quantize",
            builder().placement(Placement::Streamed).quantize(Quantize::Q8_0),
            edit(),
        ),
    ]
}

#[test]
fn an_option_without_effect_is_a_warning_before_and_during_the_run() {
    let mut names = Vec::new();
    for (option, builder, request) in without_effect(&Files::new()) {
        let folder = model(Layout::SingleFiles);
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
            .replace("negative_", "negative ");
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
        names.push(option.to_owned());
    }
    names.sort();
    names.dedup();
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
fn an_option_that_cannot_act_is_refused_with_its_name() {
    let (folder, files) = (model(Layout::SingleFiles), Files::new());
    let random = |builder: PipelineBuilder| builder.random(&ModelSizes::small(), 7).map(drop);
    let plan = |request: Request| builder().plan(&folder, &request).map(drop);
    let run = |request: Request| builder().load(&folder)?.run(&request).map(drop);
    let path = folder.join("ae.safetensors");
    let array = || ndarray::ArrayD::zeros(vec![1, 3, 64]);
    let no_lora = files.path("other.safetensors");
    let refused = [
        ("image_latents", plan(Request::generate("").image_latents(array()))),
        ("strength", plan(Request::generate("").strength(0.5))),
        ("width", plan(Request::generate("").size(50, 64))),
        ("height", plan(Request::generate("").size(64, 50))),
        ("max_area", plan(edit().conform(Conformance::Bfl))),
        ("noise", run(edit().noise(array()))),
        ("loras", run(edit().lora("absent", 1.0))),
        ("device", builder().device(Device::Cuda(99)).load(&folder).map(drop)),
        ("lora", builder().lora(&no_lora, 1.0).load(&folder).map(drop)),
        ("use_lora", builder().use_lora(&no_lora).load(&folder).map(drop)),
        ("fuse_loras", random(builder().fuse_loras(true))),
        ("placement", random(builder().placement(Placement::Staged))),
        ("memory_budget", random(builder().memory_budget(1 << 40))),
        ("quantize", random(builder().quantize(Quantize::Q8_0))),
        ("quantize_t5", random(builder().quantize_t5(Quantize::Q8_0))),
        ("transformer", random(builder().transformer(&path))),
        ("vae", random(builder().vae(&path))),
        ("clip", random(builder().clip(&path))),
        ("t5", random(builder().t5(&path))),
        ("clip_tokenizer", random(builder().clip_tokenizer(&path))),
        ("t5_tokenizer", random(builder().t5_tokenizer(&path))),
    ];
    let mut names = Vec::new();
    for (option, result) in refused {
        let error = result.unwrap_err();
        assert!(
            matches!(
                error,
                Error::InvalidArgument { .. } | Error::Device { .. } | Error::Checkpoint { .. }
            ),
            "{option}: {error:?}"
        );
        names.push(option.to_owned());
    }
    names.sort();
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
fn an_option_of_files_is_refused_before_random_weights_are_drawn() {
    let mut sizes = ModelSizes::small();
    sizes.dit.heads = 0;
    let error = builder().quantize(Quantize::Q8_0).random(&sizes, 7).unwrap_err();
    assert!(error.to_string().starts_with("invalid quantize"), "{error}");
    assert!(builder().random(&sizes, 7).is_err());
}
