//! LoRA files of every family against the results of peft and LyCORIS, and changing LoRAs of a loaded
//! pipeline.
//!
//! Fixture: `tests/reference/parts/lora.py`. Bounds are relative L2 distances in f32: another order of
//! summation moves a velocity by some 1e-7 for each of three blocks, and the smallest adapter in the fixture
//! moves it by 2e-2.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use common::loras::{Model, image};
use kontext::{Checkpoint, Device, Lora, LoraUse, Pipeline, Placement, Quantize};
use kontext_core::{Conditioning, Kind, Tensor, check};
use kontext_dit::{Dit, DitConfig, RunInput, names};
use kontext_formats::TensorMap;
use kontext_lora::{LoraFamily, LoraForm, LoraOptions, LoraTarget};
use kontext_nn::{Adapters, Weights};
use kontext_text::{ClipConfig, ClipEncoder, T5Config, T5Encoder};

const BOUND: f64 = 1e-5;
const SEED: u64 = 61;
/// Files with the complete set of low-rank factors.
const WHOLE: [(&str, LoraFamily); 7] = [
    ("diffusers", LoraFamily::Diffusers),
    ("old", LoraFamily::OldDiffusers),
    ("kohya", LoraFamily::Kohya),
    ("comfy", LoraFamily::ComfyUi),
    ("onetrainer", LoraFamily::OneTrainer),
    ("fal", LoraFamily::Fal),
    ("lycoris", LoraFamily::Lycoris),
];

struct World {
    fixture: Weights,
    metadata: BTreeMap<String, String>,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let fixture = Weights::open(kontext_fixtures::reference("lora.safetensors")).unwrap();
        Self {
            metadata: fixture.store().metadata(),
            fixture,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn raw(&self, name: &str) -> Tensor {
        self.fixture.raw(name).unwrap()
    }

    fn tensors(&self, file: &str) -> Vec<(String, Tensor)> {
        let prefix = format!("file.{file}.");
        let names = self.fixture.names();
        let names = names
            .iter()
            .filter_map(|name| Some((name.strip_prefix(&prefix)?.to_owned(), self.raw(name))));
        names.collect()
    }

    /// Writes the file as its trainer did.
    fn file(&self, name: &str) -> PathBuf {
        let json = |key: &str| serde_json::from_str::<serde_json::Value>(&self.metadata[key]).unwrap();
        let (headers, configs) = (json("files"), json("configs"));
        let header: Option<HashMap<String, String>> = headers
            .get(name)
            .map(|header| serde_json::from_value(header.clone()).unwrap());
        let folder = self.folder.path().join(name);
        kontext_core::create_folder(&folder).unwrap();
        let config = configs.get(name);
        let path = folder.join(if config.is_some() {
            "adapter_model.safetensors"
        } else {
            "lora.safetensors"
        });
        if let Some(config) = config {
            std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
        }
        kontext_formats::save(&path, &self.tensors(name), header).unwrap();
        path
    }

    fn write(&self, tensors: &[(String, Tensor)]) -> PathBuf {
        let path = self.folder.path().join("made.safetensors");
        kontext_formats::save(&path, tensors, None).unwrap();
        path
    }

    /// Returns the velocity with adapters applied at run time, or fused with the weights.
    fn velocity(&self, adapters: &Adapters, fused: bool) -> Tensor {
        let weights = transformer_weights().named(names::diffusers);
        let dit = if fused {
            Dit::new(&weights.fused(adapters.clone()), &config(), |_| ()).unwrap()
        } else {
            let dit = Dit::new(&weights, &config(), |_| ()).unwrap();
            dit.slots().set(adapters).unwrap();
            dit
        };
        let conditioning = Conditioning {
            prompt_embeds: self.raw("input.encoder_hidden_states"),
            pooled: self.raw("input.pooled_projections"),
        };
        let input = RunInput {
            conditioning: &conditioning,
            target_ids: &self.raw("input.img_ids"),
            context: None,
            times: &[600.0],
            guidance: Some(2500.0),
        };
        dit.forward(&dit.prepare(&input).unwrap(), 0, &self.raw("input.hidden_states"))
            .unwrap()
    }

    /// Checks both ways of applying adapters against the reference.
    fn agrees(&self, case: &str, adapters: &Adapters) {
        let expected = self.raw(&format!("velocity.{case}"));
        for fused in [false, true] {
            let error = check::relative_l2(&self.velocity(adapters, fused), &expected).unwrap();
            assert!(error < BOUND, "{case}, fused {fused}: {error:e}");
        }
    }
}

fn config() -> DitConfig {
    DitConfig {
        in_channels: 16,
        out_channels: 16,
        heads: 2,
        head_dim: 12,
        axes_dim: [4, 4, 4],
        mlp_width: 96,
        double_blocks: 1,
        single_blocks: 2,
        context_dim: 14,
        pooled_dim: 10,
        guidance_embed: true,
    }
}

/// Returns the synthetic weights under diffusers' names, as in the reference script.
fn transformer_weights() -> Weights {
    let (blank, synthetic) = (Weights::blank(), Weights::synthetic(SEED));
    Dit::new(&blank, &config(), |_| ()).unwrap();
    let mut tensors = Vec::new();
    for (name, shape) in blank.shapes() {
        let recipe = names::diffusers(&name);
        let mut rest = shape[0];
        let last = recipe.names().len() - 1;
        for (index, name) in recipe.names().iter().enumerate() {
            let rows = if matches!(recipe, TensorMap::Rows(_)) && index < last {
                config().width()
            } else {
                rest
            };
            rest -= rows;
            let shape = [&[rows], &shape[1..]].concat();
            tensors.push((name.clone(), synthetic.tensor(name, &shape).unwrap()));
        }
    }
    Weights::from_tensors(tensors)
}

fn adapters(lora: &Lora) -> Adapters {
    lora.adapters(&config(), |_| 1.0).unwrap()
}

/// Returns the message of an error's source.
fn cause(error: &kontext::Error) -> String {
    std::error::Error::source(error).unwrap_or(error).to_string()
}

#[test]
fn one_lora_in_the_words_of_each_family_gives_the_velocity_of_peft() {
    let world = World::new();
    world.agrees("plain", &Adapters::new());
    for (name, family) in WHOLE {
        let lora = Lora::open(world.file(name)).unwrap();
        let report = lora.report();
        assert_eq!(report.families.keys().copied().collect::<Vec<_>>(), [family]);
        assert_eq!(report.ranks.keys().copied().collect::<Vec<_>>(), [2], "{name}");
        assert_eq!(report.matched, world.tensors(name).len());
        assert_eq!(
            report.targets.keys().copied().collect::<Vec<_>>(),
            [LoraTarget::Transformer]
        );
        world.agrees("whole", &adapters(&lora));
    }
    for (name, case, family) in [
        ("xlabs", "attention", LoraFamily::XLabs),
        ("processors", "processors", LoraFamily::OldDiffusers),
    ] {
        let lora = Lora::open(world.file(name)).unwrap();
        assert_eq!(lora.report().families.keys().copied().collect::<Vec<_>>(), [family]);
        world.agrees(case, &adapters(&lora));
    }
}

#[test]
fn control_loras_of_bfl_bring_biases_and_norms_that_are_left_out_by_name() {
    let world = World::new();
    let file = world.file("bfl");
    let error = cause(&Lora::open(&file).unwrap_err());
    let expected = "4 of 52 parts of the LoRA fit nothing in the model: `double_blocks.0.img_attn.norm.key_norm.scale` \
                    (the scale of a norm; only linear layers change here), ";
    assert!(error.starts_with(expected), "{error}");
    assert!(
        error.ends_with("take a LoRA of this model, or allow them by name (`allow_unmatched`)"),
        "{error}"
    );
    let lora = LoraOptions::default()
        .allow_unmatched("*_norm.scale")
        .open(&file)
        .unwrap();
    assert_eq!(
        lora.report().families.keys().copied().collect::<Vec<_>>(),
        [LoraFamily::Bfl]
    );
    world.agrees("biases", &adapters(&lora));
}

#[test]
fn several_loras_add_up_as_in_peft() {
    let world = World::new();
    let scaled = |name: &str, scale: f64| {
        Lora::open(world.file(name))
            .unwrap()
            .adapters(&config(), |_| scale)
            .unwrap()
    };
    let mut both = scaled("kohya", 0.7);
    both.extend(scaled("processors", -0.4));
    world.agrees("two", &both);
    // Per-layer scales: as if the file held only the layers of single blocks.
    let lora = Lora::open(world.file("kohya")).unwrap();
    let some = lora
        .adapters(
            &config(),
            |layer| if layer.starts_with("single_blocks.") { 1.0 } else { 0.0 },
        )
        .unwrap();
    assert_eq!(some.layers().count(), 3);
}

#[test]
fn dora_of_diffusers_is_that_of_peft_at_every_scale() {
    let world = World::new();
    let lora = Lora::open(world.file("dora")).unwrap();
    assert_eq!(lora.report().forms, BTreeMap::from([(LoraForm::Dora, 9)]));
    world.agrees("dora", &adapters(&lora));
    world.agrees("dora.half", &lora.adapters(&config(), |_| 0.5).unwrap());
    // Scale 0 has no effect.
    assert!(lora.adapters(&config(), |_| 0.0).unwrap().is_empty());
}

#[test]
fn lokr_loha_and_dora_of_lycoris_are_those_of_its_package_at_every_scale() {
    let world = World::new();
    for (name, form) in [
        ("lokr", LoraForm::LoKr),
        ("lokr_both", LoraForm::LoKr),
        ("lokr_full", LoraForm::LoKr),
        ("loha", LoraForm::LoHa),
        ("locon_dora", LoraForm::Dora),
        ("locon_columns", LoraForm::Dora),
        ("lokr_dora", LoraForm::Dora),
        ("full", LoraForm::Full),
    ] {
        let lora = Lora::open(world.file(name)).unwrap();
        assert_eq!(
            lora.report().families.keys().copied().collect::<Vec<_>>(),
            [LoraFamily::Lycoris]
        );
        assert_eq!(
            lora.report().forms.keys().copied().collect::<Vec<_>>(),
            [form],
            "{name}"
        );
        world.agrees(name, &adapters(&lora));
        world.agrees(&format!("{name}.half"), &lora.adapters(&config(), |_| 0.5).unwrap());
    }
}

#[test]
fn a_lokr_of_peft_takes_its_scale_from_the_file_beside_it() {
    let world = World::new();
    world.agrees("peft_lokr", &adapters(&Lora::open(world.file("peft_lokr")).unwrap()));
}

#[test]
fn text_encoders_change_as_in_peft() {
    let world = World::new();
    let clip_config = ClipConfig {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        vocab_size: 60,
        ..ClipConfig::large()
    };
    let t5_config = T5Config {
        d_model: 14,
        d_kv: 6,
        d_ff: 20,
        num_heads: 2,
        num_layers: 1,
        vocab_size: 60,
        ..T5Config::xxl()
    };
    let ids = world.raw("text.ids");
    let clip = ClipEncoder::new(&Weights::synthetic(SEED), &clip_config, Kind::Float).unwrap();
    let t5 = T5Encoder::new(&Weights::synthetic(SEED), &t5_config, Kind::Float).unwrap();
    let agree = |case: &str| {
        let pairs = [
            ("clip", clip.forward(&ids).unwrap().pooled),
            ("t5", t5.forward(&ids).unwrap()),
        ];
        for (name, value) in pairs {
            let error = check::relative_l2(&value, &world.raw(&format!("{name}.{case}"))).unwrap();
            assert!(error < BOUND, "{name}.{case}: {error:e}");
        }
    };
    agree("plain");
    for file in ["text_kohya", "text_onetrainer", "text_diffusers"] {
        let lora = Lora::open(world.file(file)).unwrap();
        assert_eq!(
            lora.report().targets,
            BTreeMap::from([(LoraTarget::Clip, 4), (LoraTarget::T5, 4)])
        );
        let activate = |target, slots: &kontext_nn::AdapterSlots| {
            slots
                .set(&lora.text_adapters(target, &slots.sizes(), |_| 1.0).unwrap())
                .unwrap();
        };
        activate(LoraTarget::Clip, clip.slots());
        activate(LoraTarget::T5, t5.slots());
        agree("lora");
    }
    clip.slots().set(&Adapters::new()).unwrap();
    t5.slots().set(&Adapters::new()).unwrap();
    agree("plain");
}

#[test]
fn a_file_of_another_model_is_refused() {
    let world = World::new();
    let draw = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
    let pair = |module: &str, input: i64, rows: i64| {
        vec![
            (format!("{module}.lora_down.weight"), draw(&[2, input])),
            (format!("{module}.lora_up.weight"), draw(&[rows, 2])),
        ]
    };
    // An SDXL LoRA.
    let path = world.write(&pair("lora_unet_down_blocks_0_attentions_0_proj_in", 24, 24));
    let error = cause(&Lora::open(path).unwrap_err());
    assert!(
        error.starts_with("2 of 2 parts of the LoRA fit nothing in the model: `lora_unet_down_blocks"),
        "{error}"
    );
    // A LoRA of a wider transformer, and of a deeper one.
    let lora = Lora::open(world.write(&pair("lora_unet_double_blocks_0_img_attn_qkv", 25, 72))).unwrap();
    let error = cause(&lora.adapters(&config(), |_| 1.0).unwrap_err());
    let expected =
        "tensor `adapter of double_blocks.0.img_attn.qkv` has shape [72, 25], the configuration asks for [72, 24]";
    assert!(error.starts_with(expected), "{error}");
    let lora = Lora::open(world.write(&pair("lora_unet_double_blocks_7_img_attn_qkv", 24, 72))).unwrap();
    let error = cause(&lora.adapters(&config(), |_| 1.0).unwrap_err());
    let expected = "1 of 1 parts of the LoRA fit nothing in the model: `double_blocks.7.img_attn.qkv` (no layer of this \
                    transformer; nearest: `double_blocks.0.img_attn.qkv`)";
    assert!(error.starts_with(expected), "{error}");
}

#[test]
fn a_part_that_does_not_fit_is_refused_with_the_nearest_name_unless_allowed() {
    let world = World::new();
    let mut tensors = world.tensors("kohya");
    for (name, _) in &mut tensors {
        *name = name.replace("double_blocks_0_img_mod_lin", "double_blocks_0_img_mod_line");
    }
    let path = world.write(&tensors);
    let error = cause(&Lora::open(&path).unwrap_err());
    let expected = "(no linear layer of the model; nearest: `lora_unet_double_blocks_0_img_mod_lin`)";
    assert!(
        error.starts_with("3 of 48 parts") && error.contains(expected),
        "{error}"
    );
    let lora = Lora::options()
        .allow_unmatched("lora_unet_*_img_mod_line.*")
        .open(&path)
        .unwrap();
    assert_eq!(
        (lora.len(), lora.report().matched, lora.report().unmatched.len()),
        (15, 45, 3)
    );
    // A factor without its counterpart.
    tensors = world
        .tensors("kohya")
        .into_iter()
        .filter(|(name, _)| name != "lora_unet_img_in.lora_up.weight")
        .collect();
    let report = Lora::inspect(world.write(&tensors)).unwrap();
    let names: Vec<&str> = report.unmatched.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["lora_unet_img_in.lora_down.weight", "lora_unet_img_in.alpha"]);
    // The same LoRA again under other names.
    tensors = world
        .tensors("kohya")
        .into_iter()
        .chain(world.tensors("diffusers"))
        .collect();
    let error = cause(&Lora::open(world.write(&tensors)).unwrap_err());
    assert!(error.contains("the file holds the same in diffusers' names"), "{error}");
    let lora = Lora::options()
        .allow_unmatched("lora_unet_*")
        .open(world.write(&tensors))
        .unwrap();
    world.agrees("whole", &adapters(&lora));
}

#[test]
fn a_file_that_would_change_nothing_is_refused_unless_allowed() {
    let world = World::new();
    let zero = |(name, t): (String, Tensor)| {
        if name.contains("lora_up") {
            (name, t.zeros_like())
        } else {
            (name, t)
        }
    };
    let path = world.write(&world.tensors("kohya").into_iter().map(zero).collect::<Vec<_>>());
    let error = cause(&Lora::open(&path).unwrap_err());
    assert_eq!(
        error,
        "the LoRA would change nothing: a factor of each of its 16 layers is zero; take another file, or allow it (`allow_no_effect`)"
    );
    Lora::options().allow_no_effect().open(&path).unwrap();
    let path = world.write(&[("weight".to_owned(), Tensor::ones([2], (Kind::Float, Device::Cpu)))]);
    let error = cause(&Lora::options().allow_unmatched("*").open(path).unwrap_err());
    assert!(
        error.contains("none of its 1 tensors is of a layer of FLUX.1"),
        "{error}"
    );
}

#[test]
fn a_factor_that_is_not_finite_is_named_when_the_lora_is_added() {
    let model = Model::new();
    let pipe = model.load(&[]);
    let plain = image(&pipe);
    let name = "transformer.x_embedder.lora_B.weight";
    let spoiled = |(own, t): (String, Tensor)| {
        if own == name {
            (own, t * f64::INFINITY)
        } else {
            (own, t)
        }
    };
    let tensors: Vec<_> = common::tensors(&model.lora("red")).into_iter().map(spoiled).collect();
    let path = model.lora("spoiled");
    kontext_formats::save(&path, &tensors, None).unwrap();
    assert_eq!(Lora::inspect(&path).unwrap().not_finite, [name]);
    let error = pipe.add_lora(&path).unwrap_err();
    assert!(error.to_string().contains("spoiled.safetensors"), "{error}");
    let error = cause(&error);
    assert!(
        error.starts_with(&format!("the LoRA cannot be used: `{name}` of its ")) && error.contains("NaN or infinity"),
        "{error}"
    );
    // The scale, also as a product with that of a layer.
    let red = || LoraUse::new(model.lora("red"));
    for lora in [
        red().scale(1e300),
        red().scale(1e30).layer_scale("*", 1e30),
        red().layer_scale("*", f64::NAN),
    ] {
        let error = pipe.add_lora(lora).unwrap_err().to_string();
        assert!(
            error.starts_with("invalid scale of a LoRA: expected a number in the range of f32"),
            "{error}"
        );
    }
    assert!(pipe.loras().is_empty());
    assert_eq!(image(&pipe), plain);
}

#[test]
fn what_an_open_lora_may_leave_out_can_be_allowed_later() {
    let model = Model::new();
    let path = model.lora("red");
    // A deeper model's LoRA: its tensors are known, its last block is not there.
    let deep = |(name, t): (String, Tensor)| {
        (
            name.replace("single_transformer_blocks.0.", "single_transformer_blocks.30."),
            t,
        )
    };
    let tensors: Vec<_> = common::tensors(&path).into_iter().map(deep).collect();
    kontext_formats::save(&path, &tensors, None).unwrap();
    let pipe = model.load(&[]);
    let open = || LoraUse::of(Lora::open(&path).unwrap());
    let error = cause(&pipe.add_lora(open()).unwrap_err());
    assert!(error.contains("(no layer of this transformer; nearest: "), "{error}");
    let plain = image(&pipe);
    pipe.add_lora(open().allow_unmatched("single_transformer_blocks.30.*"))
        .unwrap();
    assert_ne!(image(&pipe), plain);
}

#[test]
fn the_report_shows_no_control_characters_of_a_file() {
    let world = World::new();
    let path = world.folder.path().join("codes.safetensors");
    let facts = HashMap::from([("title\u{1b}[2J".to_owned(), "a\nnaming: none".to_owned())]);
    let mut tensors = world.tensors("kohya");
    tensors.push(("\u{7}bell".to_owned(), Tensor::ones([2], (Kind::Float, Device::Cpu))));
    kontext_formats::save(&path, &tensors, Some(facts)).unwrap();
    let report = Lora::inspect(&path).unwrap().to_string();
    assert!(!report.contains(['\u{1b}', '\u{7}']), "{report}");
    assert!(
        report.contains("title\\u{1b}[2J = a\\nnaming: none") && report.contains("`\\u{7}bell`"),
        "{report}"
    );
}

#[test]
fn the_report_is_short_and_says_how_it_was_trained() {
    let world = World::new();
    let path = world.folder.path().join("told.safetensors");
    let facts = HashMap::from([("ss_base_model_version".to_owned(), "flux1".to_owned())]);
    kontext_formats::save(&path, &world.tensors("kohya"), Some(facts)).unwrap();
    let report = Lora::inspect(&path).unwrap().to_string();
    let expected = "naming:    kohya (32 tensors)\n\
                    adapters:  LoRA (16 layers)\n\
                    rank:      2 (16 layers)\n\
                    of:        transformer (16 layers)\n\
                    matched:   48 of 48 tensors\n\
                    ss_base_model_version = flux1";
    assert_eq!(report, expected);
}

#[test]
fn loras_come_and_go_as_if_the_model_had_been_loaded_with_them() {
    let model = Model::new();
    let pipe = model.load(&[]);
    let plain = image(&pipe);
    let fresh = |loras: &[(&str, f64)]| image(&model.load(loras));

    pipe.set_loras([LoraUse::new(model.lora("red")).scale(0.5)]).unwrap();
    assert_eq!(image(&pipe), fresh(&[("red", 0.5)]));
    assert_ne!(image(&pipe), plain);
    pipe.add_lora(model.lora("blue")).unwrap();
    let both = image(&pipe);
    assert_eq!(both, fresh(&[("red", 0.5), ("blue", 1.0)]));
    pipe.set_lora_scale("red", -0.7).unwrap();
    assert_eq!(image(&pipe), fresh(&[("red", -0.7), ("blue", 1.0)]));
    let loras = pipe.loras();
    let now: Vec<(&str, f64)> = loras.iter().map(|lora| (lora.name(), lora.scale())).collect();
    assert_eq!(now, [("red", -0.7), ("blue", 1.0)]);
    pipe.remove_lora("red").unwrap();
    assert_eq!(image(&pipe), fresh(&[("blue", 1.0)]));

    // Per-layer scales, and a rejected set.
    pipe.set_loras([LoraUse::new(model.lora("blue")).layer_scale("*", 0.0)])
        .unwrap();
    assert_eq!(image(&pipe), plain);
    pipe.set_loras([LoraUse::new(model.lora("blue"))
        .layer_scale("*", 0.0)
        .layer_scale("single_blocks.1.*", 1.0)])
        .unwrap();
    let block = image(&pipe);
    assert!(block != plain && block != fresh(&[("blue", 1.0)]));
    let refused = |error: kontext::Error| error.to_string();
    let error = pipe
        .set_loras([LoraUse::new(model.lora("red")).layer_scale("singel_blocks.*", 0.0)])
        .unwrap_err();
    assert!(refused(error).contains("got `singel_blocks.*`"));
    let error = pipe
        .set_loras([LoraUse::new(model.lora("red")), LoraUse::new(model.lora("red"))])
        .unwrap_err();
    assert_eq!(
        refused(error),
        "invalid names of LoRAs: expected a name for each (`LoraUse::named`), got `red` twice"
    );
    assert_eq!(
        refused(pipe.remove_lora("green").unwrap_err()),
        "invalid name of a LoRA: expected `blue`, got `green`"
    );
    let error = pipe.set_lora_scale("blue", f64::NAN).unwrap_err();
    assert_eq!(
        refused(error),
        "invalid scale of a LoRA: expected a number in the range of f32, got NaN"
    );
    assert_eq!(image(&pipe), block);
    pipe.set_loras([]).unwrap();
    assert_eq!(image(&pipe), plain);
}

#[test]
fn text_encoders_of_a_pipeline_change_too() {
    let model = Model::new();
    let path = model.text_lora();
    let pipe = model.load(&[]);
    let plain = image(&pipe);
    pipe.add_lora(&path).unwrap();
    assert_ne!(image(&pipe), plain);
    pipe.set_loras([LoraUse::of(Lora::open(&path).unwrap()).layer_scale("clip.*", 0.0)])
        .unwrap();
    assert_eq!(image(&pipe), plain);
    // A LoRA of a deeper encoder.
    let deep = |(name, t): (String, Tensor)| (name.replace("layers_0", "layers_11"), t);
    let tensors: Vec<_> = common::tensors(&path).into_iter().map(deep).collect();
    kontext_formats::save(&path, &tensors, None).unwrap();
    let error = cause(&pipe.add_lora(LoraUse::new(&path).named("deep")).unwrap_err());
    assert!(
        error.contains("`text_model.encoder.layers.11.mlp.fc1` (no layer of this text encoder; nearest: "),
        "{error}"
    );
}

#[test]
fn fused_loras_stay_as_they_are() {
    let model = Model::new();
    let builder = Pipeline::builder()
        .device(Device::Cpu)
        .lora(model.lora("red"), 1.0)
        .fuse_loras(true);
    let pipe = builder.load(model.path()).unwrap();
    let fused = image(&pipe);
    let beside = image(&model.load(&[("red", 1.0)]));
    let distance = fused.iter().zip(&beside).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(distance <= 1, "levels that differ by {distance}");
    let error = cause(&pipe.set_lora_scale("red", 0.5).unwrap_err());
    assert!(error.contains("load the model again without `fuse_loras`"), "{error}");
}

#[test]
fn loras_are_the_same_on_packed_weights_and_on_parts_that_come_and_go() {
    let model = Model::new();
    let levels = |a: &[u8], b: &[u8]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    let path = model.path().join("packed.gguf");
    kontext::quantize::transformer(&Checkpoint::find(model.path()).unwrap(), Quantize::Q8_0, &path).unwrap();
    let packed = |lora: bool, fuse: bool| {
        let builder = Pipeline::builder()
            .device(Device::Cpu)
            .transformer(&path)
            .fuse_loras(fuse);
        let builder = if lora {
            builder.lora(model.lora("red"), 1.0)
        } else {
            builder
        };
        image(&builder.load(model.path()).unwrap())
    };
    let (beside, plain) = (packed(true, false), packed(false, false));
    assert!(levels(&beside, &packed(true, true)) <= 1);
    assert!(levels(&beside, &plain) > 10);
    // The LoRA has the same effect as in the plain model, up to the rounding to eight bits.
    let wide = image(&model.load(&[("red", 1.0)]));
    assert!(levels(&beside, &wide) <= 25, "{}", levels(&beside, &wide));
    for placement in Placement::ALL {
        let builder = Pipeline::builder()
            .device(Device::Cpu)
            .placement(placement)
            .lora(model.lora("red"), 1.0);
        let pipe = builder.load(model.path()).unwrap();
        assert_eq!(image(&pipe), wide, "{placement}");
        assert!(pipe.unload());
        assert_eq!(image(&pipe), wide, "{placement}, loaded again");
        // A change while nothing is in memory.
        assert!(pipe.unload());
        pipe.remove_lora("red").unwrap();
        assert_eq!(image(&pipe), image(&model.load(&[])), "{placement}");
    }
}
