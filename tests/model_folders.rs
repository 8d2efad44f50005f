//! Folders of models as users and other programs leave them: what is found, and what is said if it is not.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::{Path, PathBuf};

use common::{copy, model, rename, replace, tensors, truncate};
use kontext::crates::kontext_formats::save;
use kontext::{Checkpoint, Device, Kind, Layout, ModelPart, Pipeline, Request, Tensor, Weights};
use serde_json::{Value, json};

const PARTS: [(&str, &str); 4] = [
    ("transformer", "flux1-kontext.safetensors"),
    ("vae", "ae.safetensors"),
    ("text_encoder", "clip_l.safetensors"),
    ("text_encoder_2", "t5xxl.safetensors"),
];
const DIT: &str = "transformer/diffusion_pytorch_model.safetensors";

/// Returns the error of a folder with all its causes, without the folder's path.
fn refusal(folder: &Path) -> String {
    let find = || Checkpoint::find(folder)?.open_transformer().map(drop);
    let error = find().unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    let text = text.replace(&format!("{}/", folder.display()), "");
    text.replace(&folder.display().to_string(), "FOLDER")
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

/// Edits with the model in a folder.
fn image(folder: &Path) -> Vec<u8> {
    let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(16);
    let request = Request::generate("a cat").size(32, 32).steps(1).seed(3);
    builder.load(folder).unwrap().run(&request).unwrap().image.into_raw()
}

fn make(folder: &Path) -> PathBuf {
    kontext_core::create_folder(folder).unwrap();
    folder.to_owned()
}

fn shift(from: &Path, to: &Path) {
    make(to.parent().unwrap());
    std::fs::rename(from, to).unwrap();
}

fn edit_json(path: &Path, key: &str, value: Value) {
    let mut all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all[key] = value;
    std::fs::write(path, all.to_string()).unwrap();
}

#[test]
fn hidden_files_and_damaged_files_of_no_part_do_not_block_a_model() {
    let folder = copy(Layout::SingleFiles);
    let expected = Checkpoint::find(folder.path()).unwrap();
    std::fs::write(
        folder.path().join("._ae.safetensors"),
        b"\0\x05\x16\x07\0\x02\0\0Mac OS X",
    )
    .unwrap();
    std::fs::write(
        folder.path().join("half-fetched-lora.safetensors"),
        b"\x40\0\0\0\0\0\0\0{",
    )
    .unwrap();
    std::fs::write(folder.path().join("old.ckpt"), b"PK\x03\x04").unwrap();
    assert_eq!(Checkpoint::find(folder.path()).unwrap(), expected);
}

#[test]
fn a_missing_part_names_the_damaged_files_and_the_pickles_that_may_have_been_it() {
    let folder = copy(Layout::SingleFiles);
    truncate(&folder.path().join("ae.safetensors"), 1000);
    std::fs::write(folder.path().join("ae.pt"), b"PK\x03\x04").unwrap();
    let text = refusal(folder.path());
    says(
        &text,
        &[
            "cannot load FOLDER: no VAE found; looked for a *.safetensors, *.sft or *.gguf file with its tensors",
            "; found instead `ae.safetensors`, which cannot be used (not a valid safetensors file: its header",
            "it may be truncated or damaged, fetch it again), `ae.pt`, a PyTorch pickle (not read",
        ],
    );
}

#[test]
fn files_named_sft_are_files_of_weights() {
    let folder = copy(Layout::SingleFiles);
    for (_, file) in PARTS {
        let path = folder.path().join(file);
        shift(&path, &path.with_extension("sft"));
    }
    let found = Checkpoint::find(folder.path()).unwrap();
    assert_eq!(found.vae, folder.path().join("ae.sft"));
    assert_eq!(image(folder.path()), image(&model(Layout::SingleFiles)));
}

#[test]
fn a_part_may_be_a_single_file_next_to_the_folders_of_the_others() {
    let expected = image(&model(Layout::Diffusers));
    for (part, file) in PARTS {
        let folder = copy(Layout::Diffusers);
        std::fs::remove_dir_all(folder.path().join(part)).unwrap();
        std::fs::copy(model(Layout::SingleFiles).join(file), folder.path().join(file)).unwrap();
        assert_eq!(image(folder.path()), expected, "{part}");
    }
    // The folder with its configuration only, as `--exclude transformer/*.safetensors` fetches it.
    let folder = copy(Layout::Diffusers);
    std::fs::remove_file(folder.path().join(DIT)).unwrap();
    let (_, file) = PARTS[0];
    std::fs::copy(model(Layout::SingleFiles).join(file), folder.path().join(file)).unwrap();
    assert_eq!(
        Checkpoint::find(folder.path()).unwrap().transformer,
        folder.path().join(file)
    );
}

#[test]
fn folders_are_taken_before_single_files_and_need_no_model_index() {
    let folder = copy(Layout::Diffusers);
    let expected = Checkpoint::find(folder.path()).unwrap();
    // The published repository holds its transformer and autoencoder twice.
    for (_, file) in PARTS {
        std::fs::copy(model(Layout::SingleFiles).join(file), folder.path().join(file)).unwrap();
    }
    assert_eq!(Checkpoint::find(folder.path()).unwrap(), expected);
    let folder = copy(Layout::Diffusers);
    std::fs::remove_file(folder.path().join("model_index.json")).unwrap();
    for (part, file) in &PARTS[..2] {
        std::fs::remove_dir_all(folder.path().join(part)).unwrap();
        std::fs::copy(model(Layout::SingleFiles).join(file), folder.path().join(file)).unwrap();
    }
    let found = Checkpoint::find(folder.path()).unwrap();
    assert_eq!(found.layout, Layout::SingleFiles);
    assert_eq!(
        (found.vae, found.clip),
        (folder.path().join("ae.safetensors"), folder.path().join("text_encoder"))
    );
}

#[test]
fn a_folder_of_the_hubs_cache_is_its_snapshot() {
    let cache = tempfile::tempdir().unwrap();
    let folder = make(&cache.path().join("models--black-forest-labs--FLUX.1-Kontext-dev"));
    let source = copy(Layout::Diffusers);
    let snapshot = folder.join("snapshots/0a1b");
    shift(source.path(), &snapshot);
    std::fs::write(snapshot.join("kontext.json"), r#"{"steps": 3}"#).unwrap();
    make(&folder.join("refs"));
    // Without a reference, the only snapshot.
    assert_eq!(Checkpoint::find(&folder).unwrap().folder, snapshot);
    // A reference to a snapshot that was not fetched is not one to the other.
    for bad in ["", "gone", "../..", "/"] {
        std::fs::write(folder.join("refs/main"), bad).unwrap();
        says(
            &refusal(&folder),
            &[
                "no snapshot of the hub's cache found",
                &format!("looked for `{bad}`, which its `refs/main` names; found instead `snapshots/0a1b`"),
            ],
        );
    }
    std::fs::remove_file(folder.join("refs/main")).unwrap();
    make(&folder.join("snapshots/ffff"));
    says(
        &refusal(&folder),
        &[
            "no snapshot of the hub's cache found; looked for `refs/main`, which names it, or the only one",
            "found instead `snapshots/0a1b`, `snapshots/ffff`",
        ],
    );
    std::fs::write(folder.join("refs/main"), "0a1b\n").unwrap();
    assert_eq!(Checkpoint::find(&folder).unwrap(), Checkpoint::find(&snapshot).unwrap());
    let plan = Pipeline::builder()
        .device(Device::Cpu)
        .plan(&folder, &Request::generate("x"))
        .unwrap();
    assert_eq!(plan.schedule.steps(), 3);
    let text = refusal(cache.path());
    says(
        &text,
        &["the folder `models--black-forest-labs--FLUX.1-Kontext-dev` of a model (name that)"],
    );
}

#[test]
fn the_folder_above_a_model_and_one_of_its_parts_name_the_model() {
    let above = tempfile::tempdir().unwrap();
    let source = copy(Layout::Diffusers);
    shift(source.path(), &above.path().join("kontext"));
    let text = refusal(above.path());
    says(
        &text,
        &[
            "no transformer found",
            "found instead the folder `kontext` of a model (name that)",
        ],
    );
    let model = above.path().join("kontext");
    let words = format!(
        "found instead a part of the model in {} (name that folder)",
        model.display()
    );
    says(&refusal(&model.join("vae")), &[&words]);
    says(&refusal(&model.join("transformer")), &["no VAE found", &words]);
}

/// Moves the single files of a model to the folders of ComfyUI.
fn comfy() -> tempfile::TempDir {
    let folder = copy(Layout::SingleFiles);
    for (file, to) in [
        ("flux1-kontext.safetensors", "diffusion_models/flux"),
        ("ae.safetensors", "vae"),
        ("clip_l.safetensors", "clip"),
        ("t5xxl.safetensors", "text_encoders"),
    ] {
        shift(&folder.path().join(file), &folder.path().join(to).join(file));
    }
    folder
}

#[test]
fn parts_are_found_in_the_folders_of_comfyui() {
    let folder = comfy();
    let found = Checkpoint::find(folder.path()).unwrap();
    assert_eq!(
        found.transformer,
        folder.path().join("diffusion_models/flux/flux1-kontext.safetensors")
    );
    assert_eq!(found.layout, Layout::SingleFiles);
    assert_eq!(image(folder.path()), image(&model(Layout::SingleFiles)));
    // Files of other models are no candidates: an autoencoder and a CLIP of other sizes, another transformer.
    let file = |name: &str| folder.path().join(name);
    let channels = |t: &Tensor| t.narrow(1, 0, 4).contiguous();
    std::fs::copy(file("vae/ae.safetensors"), file("vae/sdxl_vae.safetensors")).unwrap();
    replace(&file("vae/sdxl_vae.safetensors"), "decoder.conv_in.weight", channels);
    std::fs::copy(file("clip/clip_l.safetensors"), file("clip/clip_g.safetensors")).unwrap();
    let wide = |t: &Tensor| Tensor::cat(&[t, t], 1);
    replace(
        &file("clip/clip_g.safetensors"),
        "text_model.embeddings.token_embedding.weight",
        wide,
    );
    let chroma = ["img_in.weight", "distilled_guidance_layer.in_proj.weight"];
    let chroma = chroma.map(|name| (name.to_owned(), Tensor::from_slice(&[1.0_f32])));
    save(file("diffusion_models/chroma.safetensors"), &chroma, None).unwrap();
    make(&file("checkpoints"));
    save(
        file("checkpoints/sd15.safetensors"),
        &tensors(&file("clip/clip_l.safetensors")),
        None,
    )
    .unwrap();
    assert_eq!(Checkpoint::find(folder.path()).unwrap(), found);
    // Several that fit are named, with the options that choose.
    std::fs::copy(file("clip/clip_l.safetensors"), file("clip/finetuned.safetensors")).unwrap();
    says(
        &refusal(folder.path()),
        &[
            "two files for the CLIP text encoder: clip/clip_l.safetensors and clip/finetuned.safetensors; move one away",
            "or name one (`clip` of the builder, --clip of the programs)",
        ],
    );
    let builder = Pipeline::builder()
        .device(Device::Cpu)
        .clip(file("clip/clip_l.safetensors"));
    builder.plan(folder.path(), &Request::generate("x")).unwrap();
}

/// Writes a copy of an autoencoder with the latent channels of SDXL's.
fn other_vae(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
    replace(to, "decoder.conv_in.weight", |t| t.narrow(1, 0, 4).contiguous());
}

#[test]
fn a_file_of_another_model_under_diffusers_name_does_not_hide_the_right_one_next_to_it() {
    let folder = comfy();
    let [other, right] =
        ["diffusion_pytorch_model.safetensors", "ae.safetensors"].map(|name| folder.path().join("vae").join(name));
    other_vae(&right, &other);
    assert_eq!(Checkpoint::find(folder.path()).unwrap().vae, right);
    // As its only file, the folder is the part, with all variants of it.
    std::fs::rename(&right, &other).unwrap();
    std::fs::copy(
        &other,
        folder.path().join("vae/diffusion_pytorch_model.fp16.safetensors"),
    )
    .unwrap();
    assert_eq!(Checkpoint::find(folder.path()).unwrap().vae, folder.path().join("vae"));
}

#[test]
fn a_part_of_other_sizes_is_taken_only_if_no_place_has_one_that_fits() {
    let folder = comfy();
    let [other, right] = ["sdxl_vae.safetensors", "vae/ae.safetensors"].map(|name| folder.path().join(name));
    other_vae(&right, &other);
    assert_eq!(Checkpoint::find(folder.path()).unwrap().vae, right);
    // The same for the folder of the part.
    let own = folder.path().join("vae/diffusion_pytorch_model.safetensors");
    shift(&other, &own);
    shift(&right, &folder.path().join("ae.safetensors"));
    assert_eq!(
        Checkpoint::find(folder.path()).unwrap().vae,
        folder.path().join("ae.safetensors")
    );
    std::fs::remove_file(folder.path().join("ae.safetensors")).unwrap();
    assert_eq!(Checkpoint::find(folder.path()).unwrap().vae, folder.path().join("vae"));
}

#[test]
fn the_file_under_diffusers_name_is_taken_next_to_another_without_a_configuration() {
    let folder = copy(Layout::Diffusers);
    let part = folder.path().join("text_encoder_2");
    std::fs::remove_file(part.join("config.json")).unwrap();
    std::fs::copy(part.join("model.safetensors"), part.join("t5xxl.safetensors")).unwrap();
    let found = Checkpoint::find(folder.path()).unwrap();
    assert_eq!(found.t5, part);
    let files = found.files().unwrap();
    assert!(files.contains(&part.join("model.safetensors")) && !files.contains(&part.join("t5xxl.safetensors")));
}

#[cfg(unix)]
#[test]
fn a_link_and_its_file_are_one_file() {
    let folder = copy(Layout::SingleFiles);
    std::os::unix::fs::symlink("ae.safetensors", folder.path().join("vae.safetensors")).unwrap();
    assert_eq!(
        Checkpoint::find(folder.path()).unwrap().vae,
        folder.path().join("ae.safetensors")
    );
    std::fs::remove_file(folder.path().join("ae.safetensors")).unwrap();
    says(
        &refusal(folder.path()),
        &[
            "no VAE found",
            "`vae.safetensors`, which cannot be used (a link to a file that is gone)",
        ],
    );
}

#[test]
fn a_transformer_with_further_input_channels_is_named_when_it_is_opened() {
    for (channels, name) in [
        (384, "FLUX.1-Fill (384 channels in, 64 out, expected as many in as out)"),
        (128, "FLUX.1-Depth or FLUX.1-Canny (128 channels in"),
        (196, "another model (196 channels in"),
    ] {
        let words = [
            name,
            "it is the transformer of",
            "take that of FLUX.1 Kontext, FLUX.1-dev or FLUX.1-schnell",
        ];
        let wide = |t: &Tensor| Tensor::zeros([t.size()[0], channels], (Kind::Float, Device::Cpu));
        let folder = copy(Layout::SingleFiles);
        replace(&folder.path().join("flux1-kontext.safetensors"), "img_in.weight", wide);
        says(&refusal(folder.path()), &words);
        let plan = Pipeline::builder().plan(folder.path(), &Request::generate("x"));
        assert!(plan.is_err());
        let folder = copy(Layout::Diffusers);
        replace(&folder.path().join(DIT), "x_embedder.weight", wide);
        edit_json(
            &folder.path().join("transformer/config.json"),
            "in_channels",
            json!(channels),
        );
        edit_json(
            &folder.path().join("transformer/config.json"),
            "out_channels",
            json!(64),
        );
        says(&refusal(folder.path()), &words);
    }
}

#[test]
fn transformers_of_other_models_are_named_with_what_to_take() {
    let tell = [
        ("distilled_guidance_layer.in_proj.weight", "Chroma"),
        ("double_stream_modulation_img.lin.weight", "FLUX.2"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
    ];
    for (tensor, name) in tell {
        let folder = copy(Layout::SingleFiles);
        let path = folder.path().join("flux1-kontext.safetensors");
        rename(&path, "vector_in.in_layer.weight", tensor);
        let found = format!("found instead `flux1-kontext.safetensors`, which is of {name}");
        says(&refusal(folder.path()), &["no transformer found", &found]);
        let error = Pipeline::builder()
            .transformer(&path)
            .plan(folder.path(), &Request::generate("x"))
            .unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        let take = "take that of FLUX.1 Kontext, FLUX.1-dev or FLUX.1-schnell";
        assert_eq!(cause, format!("it is the transformer of {name}; {take}"));
    }
    // Weights quantised by nunchaku.
    let folder = copy(Layout::SingleFiles);
    let path = folder.path().join("flux1-kontext.safetensors");
    rename(
        &path,
        "double_blocks.0.img_attn.qkv.weight",
        "transformer_blocks.0.qkv_proj.wscales",
    );
    says(
        &refusal(folder.path()),
        &["`flux1-kontext.safetensors`, which cannot be used (it is quantised by nunchaku (SVDQuant)"],
    );
}

#[test]
fn classes_of_other_models_are_named_by_the_file_that_names_them() {
    for (file, key, class, words) in [
        (
            "model_index.json",
            "_class_name",
            "StableDiffusion3Pipeline",
            "expected FluxKontextPipeline or FluxPipeline",
        ),
        (
            "model_index.json",
            "_class_name",
            "Flux2Pipeline",
            "expected FluxKontextPipeline or FluxPipeline",
        ),
        (
            "transformer/config.json",
            "_class_name",
            "ChromaTransformer2DModel",
            "expected FluxTransformer2DModel",
        ),
    ] {
        let folder = copy(Layout::Diffusers);
        edit_json(&folder.path().join(file), key, json!(class));
        let expected = format!("cannot load {file}: the configuration cannot be used: `{key}` is {class}, {words}");
        says(&refusal(folder.path()), &[&expected]);
    }
    for (file, key, class, words) in [
        (
            "vae/config.json",
            "_class_name",
            "AutoencoderDC",
            "expected AutoencoderKL",
        ),
        (
            "text_encoder/config.json",
            "model_type",
            "siglip",
            "expected clip_text_model or clip",
        ),
        ("text_encoder_2/config.json", "model_type", "umt5", "expected t5 or mt5"),
        (
            "scheduler/scheduler_config.json",
            "_class_name",
            "DDIMScheduler",
            "expected FlowMatchEulerDiscreteScheduler",
        ),
    ] {
        let folder = copy(Layout::Diffusers);
        edit_json(&folder.path().join(file), key, json!(class));
        let error = Pipeline::builder().device(Device::Cpu).load(folder.path()).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        says(&cause, &[&format!("`{key}` is {class}, {words}")]);
        assert!(error.to_string().ends_with(file), "{error}");
    }
}

#[test]
fn a_list_is_no_configuration_of_any_part() {
    for file in [
        "model_index.json",
        "transformer/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "scheduler/scheduler_config.json",
        "kontext.json",
    ] {
        let folder = copy(Layout::Diffusers);
        std::fs::write(folder.path().join(file), "[]").unwrap();
        let error = Pipeline::builder().device(Device::Cpu).load(folder.path()).unwrap_err();
        assert!(error.to_string().ends_with(file), "{error}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("expected an object in braces"), "{file}: {cause}");
    }
}

#[test]
fn a_single_file_in_diffusers_names_needs_no_configuration() {
    let folder = copy(Layout::SingleFiles);
    let path = folder.path().join("flux1-kontext.safetensors");
    std::fs::copy(model(Layout::Diffusers).join(DIT), &path).unwrap();
    let (_, expected) = Checkpoint::find(model(Layout::Diffusers))
        .unwrap()
        .open_transformer()
        .unwrap();
    let open = || Checkpoint::find(folder.path()).unwrap().open_transformer().unwrap().1;
    assert_eq!(open(), expected);
    // The configuration of another model next to it is not its own.
    std::fs::write(folder.path().join("config.json"), r#"{"model_type": "clip"}"#).unwrap();
    assert_eq!(open(), expected);
    assert_eq!(image(folder.path()), image(&model(Layout::Diffusers)));
}

#[test]
fn split_files_of_a_model_are_found_as_one_part() {
    let folder = copy(Layout::SingleFiles);
    let path = folder.path().join("flux1-kontext.safetensors");
    let all = tensors(&path);
    let (first, second) = all.split_at(all.len() / 2);
    std::fs::remove_file(&path).unwrap();
    let names = [1, 2].map(|index| format!("flux1-0000{index}-of-00002.safetensors"));
    let [one, two] = names.clone().map(|name| folder.path().join(name));
    save(&one, first, None).unwrap();
    save(&two, second, None).unwrap();
    let expected = image(&model(Layout::SingleFiles));
    assert_eq!(Checkpoint::find(folder.path()).unwrap().transformer, one);
    assert_eq!(image(folder.path()), expected);
    let map = |tensors: &[(String, Tensor)], name: &str| -> Vec<(String, Value)> {
        tensors
            .iter()
            .map(|(tensor, _)| (tensor.clone(), json!(name)))
            .collect()
    };
    let map: serde_json::Map<_, _> = [map(first, &names[0]), map(second, &names[1])]
        .concat()
        .into_iter()
        .collect();
    let index = folder.path().join("flux1.safetensors.index.json");
    std::fs::write(&index, json!({ "weight_map": map }).to_string()).unwrap();
    assert_eq!(Checkpoint::find(folder.path()).unwrap().transformer, index);
    assert_eq!(image(folder.path()), expected);
    std::fs::remove_file(two).unwrap();
    says(
        &refusal(folder.path()),
        &[
            "no transformer found",
            "its shard `flux1-00002-of-00002.safetensors` is missing",
        ],
    );
}

#[test]
fn clip_without_its_prefix_is_found_as_a_single_file() {
    let folder = copy(Layout::SingleFiles);
    let path = folder.path().join("clip_l.safetensors");
    let bare = tensors(&path).into_iter().map(|(name, tensor)| {
        let bare = name.strip_prefix("text_model.").unwrap().to_owned();
        (bare, tensor)
    });
    save(&path, &bare.collect::<Vec<_>>(), None).unwrap();
    assert_eq!(Checkpoint::parts_in(&path).unwrap(), [ModelPart::Clip]);
    assert_eq!(image(folder.path()), image(&model(Layout::SingleFiles)));
}

#[test]
fn a_number_of_a_configuration_out_of_range_is_named_with_its_part() {
    for (file, key, value) in [
        ("text_encoder/config.json", "layer_norm_eps", json!(-1.0)),
        ("text_encoder_2/config.json", "layer_norm_epsilon", json!(9e18)),
        ("scheduler/scheduler_config.json", "base_shift", json!(500)),
        ("scheduler/scheduler_config.json", "shift", json!(-5)),
        ("vae/config.json", "scaling_factor", json!(-1)),
        ("transformer/config.json", "axes_dims_rope", json!([0, 64, 64])),
    ] {
        let folder = copy(Layout::Diffusers);
        edit_json(&folder.path().join(file), key, value);
        let error = Pipeline::builder().device(Device::Cpu).load(folder.path()).unwrap_err();
        let (part, _) = file.split_once('/').unwrap();
        assert!(error.to_string().contains(&format!("/{part}/")), "{key}: {error}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        let name = if key == "axes_dims_rope" {
            "invalid axes_dim: expected even widths"
        } else {
            key
        };
        assert!(cause.contains(name), "{key}: {cause}");
    }
}

#[test]
fn the_parts_of_a_file_are_listed() {
    let folder = model(Layout::SingleFiles);
    let parts = [
        ModelPart::Transformer,
        ModelPart::Autoencoder,
        ModelPart::Clip,
        ModelPart::T5,
    ];
    let mut whole = Vec::new();
    for ((_, file), part) in PARTS.iter().zip(parts) {
        assert_eq!(Checkpoint::parts_in(folder.join(file)).unwrap(), [part]);
        whole.extend(tensors(&folder.join(file)));
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("all.safetensors");
    // T5's names and CLIP's have the same beginning, as in a checkpoint of ComfyUI they have not.
    save(&path, &whole, None).unwrap();
    assert_eq!(Checkpoint::parts_in(&path).unwrap(), parts);
    assert!(Weights::open(&path).is_ok());
}
