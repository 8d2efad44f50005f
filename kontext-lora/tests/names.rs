//! Weights with a LoRA added, under the names of every writer, against numpy's.
//!
//! Fixtures: `tests/reference/parts/lora.py` (the factors) and `lora_names.py` (the weights). Bounds are
//! relative L2 distances: a product of f32 with an identity, and one rounding of the sum, are within 1e-6.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use kontext_core::{Device, Kind, Tensor, check};
use kontext_dit::{Dit, DitConfig, names};
use kontext_formats::TensorMap;
use kontext_lora::{Lora, LoraFamily};
use kontext_nn::{Linear, Weights};

/// Returns the name of a layer in a file by that in BFL's or diffusers' naming.
type Name = Box<dyn Fn(&str) -> String>;
/// A file of the fixture, its prefix, and the ends of its names.
type Source = (&'static str, &'static str, [&'static str; 3]);

const BOUND: f64 = 1e-6;
const SEED: u64 = 61;
/// The factors under BFL's and under diffusers' names, in dotted files with `alpha`.
const WHOLE: Source = (
    "comfy",
    "diffusion_model.",
    ["lora_down.weight", "lora_up.weight", "alpha"],
);
const PARTS: Source = ("old", "transformer.", ["lora.down.weight", "lora.up.weight", "alpha"]);
/// OneTrainer's numbers of the parts of BFL's layers.
const NUMBERED: [(&str, &str); 12] = [
    ("transformer_blocks.0.attn.to_q", "double_blocks.0.img_attn.qkv.0"),
    ("transformer_blocks.0.attn.to_k", "double_blocks.0.img_attn.qkv.1"),
    ("transformer_blocks.0.attn.to_v", "double_blocks.0.img_attn.qkv.2"),
    ("transformer_blocks.0.attn.add_q_proj", "double_blocks.0.txt_attn.qkv.0"),
    ("transformer_blocks.0.attn.add_k_proj", "double_blocks.0.txt_attn.qkv.1"),
    ("transformer_blocks.0.attn.add_v_proj", "double_blocks.0.txt_attn.qkv.2"),
    ("transformer_blocks.0.attn.to_add_out", "double_blocks.0.txt_attn.proj"),
    ("single_transformer_blocks.1.attn.to_q", "single_blocks.1.linear1.0"),
    ("single_transformer_blocks.1.attn.to_k", "single_blocks.1.linear1.1"),
    ("single_transformer_blocks.1.attn.to_v", "single_blocks.1.linear1.2"),
    ("single_transformer_blocks.1.proj_mlp", "single_blocks.1.linear1.3"),
    ("x_embedder", "img_in.proj"),
];

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
fn weights() -> Weights {
    let (blank, synthetic) = (Weights::blank(), Weights::synthetic(SEED));
    Dit::new(&blank, &config(), |_| ()).unwrap();
    let mut tensors = Vec::new();
    for (name, shape) in blank.shapes() {
        let recipe = names::diffusers(&name);
        let (mut rest, last) = (shape[0], recipe.names().len() - 1);
        for (index, name) in recipe.names().iter().enumerate() {
            let fused = matches!(recipe, TensorMap::Rows(_)) && index < last;
            let rows = if fused { config().width() } else { rest };
            rest -= rows;
            let shape = [&[rows], &shape[1..]].concat();
            tensors.push((name.clone(), synthetic.tensor(name, &shape).unwrap()));
        }
    }
    Weights::from_tensors(tensors).named(names::diffusers)
}

/// Returns the tensors of a dotted file of the fixture: the layer, the factor (0 down, 1 up, 2 alpha), the
/// value.
fn factors((file, prefix, leaves): Source) -> Vec<(String, usize, Tensor)> {
    let fixture = Weights::open(kontext_fixtures::reference("lora.safetensors")).unwrap();
    let start = format!("file.{file}.{prefix}");
    let parse = |name: &String| {
        let rest = name.strip_prefix(&start)?;
        let found = leaves.iter().enumerate().find_map(|(index, leaf)| {
            let module = rest.strip_suffix(leaf)?.strip_suffix('.')?;
            Some((module.to_owned(), index))
        });
        let (module, leaf) = found?;
        Some((module, leaf, fixture.raw(name).unwrap()))
    };
    fixture.names().iter().filter_map(parse).collect()
}

/// Writes a file whose names are those of `module` with these endings.
fn write(tensors: Vec<(String, usize, Tensor)>, module: impl Fn(&str) -> String, ends: [&str; 3]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let named = |(layer, leaf, value): (String, usize, Tensor)| (format!("{}.{}", module(&layer), ends[leaf]), value);
    let tensors: Vec<_> = tensors.into_iter().map(named).collect();
    kontext_formats::save(folder.path().join("lora.safetensors"), &tensors, None).unwrap();
    folder
}

/// Checks that the weights with this LoRA added are numpy's.
fn agrees(lora: &Lora, case: &str) {
    let fixture = Weights::open(kontext_fixtures::reference("lora_names.safetensors")).unwrap();
    let fused = weights().fused(lora.adapters(&config(), |_| 1.0).unwrap());
    let names = fixture.names();
    assert_eq!(names.len(), 5);
    for name in names {
        let expected = fixture.raw(&name).unwrap();
        let (rows, input) = expected.size2().unwrap();
        let layer = Linear::new(&fused.at(name.strip_prefix("fused.").unwrap()), input, rows).unwrap();
        let product = |x: &Tensor| layer.forward(x).unwrap();
        let eye = Tensor::eye(input, (Kind::Float, Device::Cpu));
        let weight = (product(&eye) - product(&eye.zeros_like())).tr();
        let error = check::relative_l2(&weight, &expected).unwrap();
        assert!(error < BOUND, "{case}, {name}: {error:e}");
    }
}

#[test]
fn fused_weights_are_those_of_numpy_under_the_names_of_every_writer() {
    let flat = |name: &str| name.replace('.', "_");
    let numbered = |name: &str| {
        let found = NUMBERED.iter().find(|(part, _)| *part == name);
        found.map_or_else(|| name.to_owned(), |(_, number)| (*number).to_owned())
    };
    let before = |prefix: &'static str| -> Name { Box::new(move |name| format!("{prefix}{name}")) };
    let under = |prefix: &'static str, end: &'static str| -> Name {
        Box::new(move |name| format!("{prefix}{}{end}", name.replace('.', "_")))
    };
    let (peft, kohya) = (["lora_A.weight", "lora_B.weight", "alpha"], WHOLE.2);
    let old = ["lora.down.weight", "lora.up.weight", "lora.alpha"];
    let named = ["lora_A.default_0.weight", "lora_B.default_0.weight", "alpha"];
    let spaced = ["lora_A.my style.weight", "lora_B.my style.weight", "alpha"];
    let layer = ["lora_linear_layer.down.weight", "lora_linear_layer.up.weight", "alpha"];
    let cases: Vec<(&str, LoraFamily, Source, Name, [&str; 3])> = vec![
        ("kohya", LoraFamily::Kohya, WHOLE, under("lora_unet_", ""), kohya),
        (
            "kohya, PEFT's factors",
            LoraFamily::Kohya,
            WHOLE,
            under("lora_unet_", ""),
            peft,
        ),
        (
            "kohya, underscores",
            LoraFamily::Kohya,
            WHOLE,
            under("lora_unet__", "_"),
            kohya,
        ),
        ("kohya, parts", LoraFamily::Kohya, PARTS, under("lora_unet_", ""), kohya),
        (
            "kohya, parts_",
            LoraFamily::Kohya,
            PARTS,
            under("lora_unet_", "_"),
            kohya,
        ),
        (
            "kohya, dashes",
            LoraFamily::Kohya,
            PARTS,
            Box::new(|name| format!("lora_unet-{}", name.replace('.', "-"))),
            kohya,
        ),
        ("ComfyUI", LoraFamily::ComfyUi, WHOLE, before("diffusion_model."), peft),
        (
            "ComfyUI, model",
            LoraFamily::ComfyUi,
            WHOLE,
            before("model.diffusion_model."),
            kohya,
        ),
        (
            "ComfyUI, old factors",
            LoraFamily::ComfyUi,
            WHOLE,
            before("diffusion_model."),
            old,
        ),
        (
            "SimpleTuner for ComfyUI",
            LoraFamily::ComfyUi,
            PARTS,
            before("diffusion_model."),
            peft,
        ),
        ("BFL", LoraFamily::Bfl, WHOLE, before(""), peft),
        ("BFL, an adapter", LoraFamily::Bfl, WHOLE, before(""), named),
        ("fal", LoraFamily::Fal, WHOLE, before("base_model.model."), peft),
        (
            "fal, an adapter",
            LoraFamily::Fal,
            WHOLE,
            before("base_model.model."),
            spaced,
        ),
        (
            "diffusers, ai-toolkit",
            LoraFamily::Diffusers,
            PARTS,
            before("transformer."),
            peft,
        ),
        (
            "diffusers, an adapter",
            LoraFamily::Diffusers,
            PARTS,
            before("transformer."),
            named,
        ),
        (
            "diffusers, kohya's factors",
            LoraFamily::Diffusers,
            PARTS,
            before("transformer."),
            kohya,
        ),
        ("PEFT", LoraFamily::Fal, PARTS, before("base_model.model."), named),
        (
            "PEFT on diffusers",
            LoraFamily::Diffusers,
            PARTS,
            before("transformer.base_model.model."),
            peft,
        ),
        ("no prefix", LoraFamily::Diffusers, PARTS, before(""), peft),
        (
            "wrapped",
            LoraFamily::Diffusers,
            PARTS,
            before("module._orig_mod."),
            named,
        ),
        (
            "compiled blocks",
            LoraFamily::Diffusers,
            PARTS,
            Box::new(|name| format!("transformer.{}", name.replace("blocks.0.", "blocks.0._orig_mod."))),
            peft,
        ),
        ("early diffusers", LoraFamily::OldDiffusers, PARTS, before("unet."), old),
        (
            "early diffusers, layers",
            LoraFamily::OldDiffusers,
            PARTS,
            before("transformer."),
            layer,
        ),
        (
            "OneTrainer",
            LoraFamily::OneTrainer,
            PARTS,
            under("lora_transformer_", ""),
            kohya,
        ),
        ("LyCORIS", LoraFamily::Lycoris, PARTS, under("lycoris_", ""), kohya),
    ];
    for (case, family, source, name, ends) in cases {
        let folder = write(factors(source), name, ends);
        let lora = Lora::open(folder.path()).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        let families: Vec<LoraFamily> = lora.report().families.keys().copied().collect();
        assert_eq!(families, [family], "{case}");
        agrees(&lora, case);
    }
    // OneTrainer's other files have BFL's names, with numbers for the parts.
    let folder = write(factors(PARTS), |name| format!("transformer.{}", numbered(name)), kohya);
    agrees(&Lora::open(folder.path()).unwrap(), "OneTrainer, numbers");
    // A LoRA in the folder of a training, next to other files.
    let folder = write(factors(WHOLE), |name| format!("lora_unet_{}", flat(name)), kohya);
    std::fs::write(folder.path().join("._lora.safetensors"), "Mac OS X").unwrap();
    std::fs::write(folder.path().join("sample.png"), "").unwrap();
    assert!(Lora::found_in(folder.path()));
    agrees(&Lora::open(folder.path()).unwrap(), "folder");
}

#[test]
fn of_two_adapters_in_one_file_the_second_is_refused_unless_allowed() {
    let pairs = |adapter: &str, scale: f64| {
        let adapter = adapter.to_owned();
        let tensor = move |(module, leaf, value): (String, usize, Tensor)| {
            let end = ["lora_A.{}.weight", "lora_B.{}.weight"]
                .get(leaf)?
                .replace("{}", &adapter);
            Some((
                format!("transformer.{module}.{end}"),
                if leaf == 0 { value * scale } else { value },
            ))
        };
        factors(PARTS).into_iter().filter_map(tensor).collect::<Vec<_>>()
    };
    let folder = tempfile::tempdir().unwrap();
    // alpha / rank is 3 / 2.
    let tensors: Vec<_> = pairs("default_0", 1.5)
        .into_iter()
        .chain(pairs("default_1", 7.0))
        .collect();
    kontext_formats::save(folder.path().join("lora.safetensors"), &tensors, None).unwrap();
    let error = Lora::open(folder.path()).unwrap_err();
    let error = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        error.contains(".default_1.weight` (of another adapter of PEFT"),
        "{error}"
    );
    let lora = Lora::options()
        .allow_unmatched("*.default_1.*")
        .open(folder.path())
        .unwrap();
    agrees(&lora, "the first adapter");
}

#[test]
fn a_folder_of_another_kind_is_none_of_a_lora() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!Lora::found_in(folder.path()) && !Lora::found_in("no such folder"));
    let tensor = Tensor::ones([2, 2], (Kind::Float, Device::Cpu));
    let tensors = [("double_blocks.0.img_attn.qkv.weight".to_owned(), tensor)];
    let file = folder.path().join("flux.safetensors");
    kontext_formats::save(&file, &tensors, None).unwrap();
    assert!(!Lora::found_in(folder.path()) && !Lora::found_in(file));
}
