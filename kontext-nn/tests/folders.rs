//! Weights in folders and in several files, as users and other programs leave them.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::Path;

use common::{Part, chain, described, entry, gguf_file, safetensors_file};
use kontext_formats::Store;
use kontext_nn::Weights;
use tempfile::TempDir;

/// A folder in which every file holds one number, under the file's own tensor name.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, tensor) in files {
        std::fs::write(
            folder.path().join(file),
            safetensors_file(&[Part::floats(tensor, &[1.0])]),
        )
        .unwrap();
    }
    folder
}

/// Returns the names of the tensors that are found, or the error without the folder's path.
fn opened(path: &Path) -> Result<Vec<String>, String> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap() };
    let short = |error| {
        chain(&error)
            .replace(&format!("{}/", folder.display()), "")
            .replace(&folder.display().to_string(), "FOLDER")
    };
    Weights::open(path).map(|weights| weights.names()).map_err(short)
}

fn found(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
    opened(folder(files).path())
}

#[test]
fn a_variant_of_any_name_is_found_and_the_preferred_one_is_taken() {
    let stem = "diffusion_pytorch_model";
    for name in [
        "fp32.safetensors",
        "non_ema.safetensors",
        "fp8_e4m3fn.safetensors",
        "sft",
        "Q8_0.gguf",
    ] {
        assert_eq!(found(&[(&format!("{stem}.{name}"), "a")]).unwrap(), ["a"], "{name}");
    }
    let of = |names: &[&str]| {
        let files: Vec<(String, &str)> = names
            .iter()
            .map(|name| (format!("model{name}.safetensors"), *name))
            .collect();
        found(
            &files
                .iter()
                .map(|(file, tensor)| (file.as_str(), *tensor))
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(of(&[".fp16", ".fp32", ".ema"]).unwrap(), [".fp16"]);
    assert_eq!(of(&[".fp32", ".ema"]).unwrap(), [".fp32"]);
    let several = of(&[".ema", ".non_ema"]).unwrap_err();
    let words = "two files for the weights: `model.ema.safetensors` and `model.non_ema.safetensors`; name one of them";
    assert!(several.contains(words), "{several}");
}

#[test]
fn the_only_file_of_a_folder_is_taken_under_any_name_and_hidden_files_are_not_looked_at() {
    let folder = folder(&[("t5xxl_fp16.safetensors", "a")]);
    std::fs::write(
        folder.path().join("._t5xxl_fp16.safetensors"),
        b"\0\x05\x16\x07\0\x02\0\0Mac OS X",
    )
    .unwrap();
    assert_eq!(opened(folder.path()).unwrap(), ["a"]);
    let several = found(&[("a.safetensors", "a"), ("b.sft", "b")]).unwrap_err();
    assert!(
        several.contains("two files for the weights: `a.safetensors` and `b.sft`; name one of them"),
        "{several}"
    );
}

#[test]
fn pickles_are_named_where_weights_are_missed() {
    let folder = folder(&[]);
    std::fs::write(folder.path().join("diffusion_pytorch_model.bin"), "").unwrap();
    let error = opened(folder.path()).unwrap_err();
    let words = "; found instead `diffusion_pytorch_model.bin`, a PyTorch pickle (not read, as it can run code: take \
                 the model's safetensors); fetch what is missing or name another path";
    assert!(
        error.starts_with("cannot load FOLDER: no weights found; looked for") && error.ends_with(words),
        "{error}"
    );
}

#[test]
fn shards_without_an_index_are_opened_together_by_any_of_their_names() {
    let files = [
        ("flux1-00001-of-00002.safetensors", "a"),
        ("flux1-00002-of-00002.safetensors", "b"),
    ];
    let whole = folder(&files);
    assert_eq!(opened(whole.path()).unwrap(), ["a", "b"]);
    for (file, _) in files {
        assert_eq!(opened(&whole.path().join(file)).unwrap(), ["a", "b"]);
    }
    let half = folder(&files[1..]);
    assert_eq!(
        opened(&half.path().join(files[1].0)).unwrap_err(),
        "cannot load flux1-00002-of-00002.safetensors: no shard found; looked for \
         `flux1-00001-of-00002.safetensors`, another file of the same set; fetch what is missing or name another path"
    );
    let error = opened(half.path()).unwrap_err();
    let words = "`flux1-00002-of-00002.safetensors`, which cannot be used (`flux1-00001-of-00002.safetensors` of the \
                 same split file is missing)";
    assert!(error.contains(words), "{error}");
    let twice = folder(&[files[0], (files[1].0, "a")]);
    let error = opened(twice.path()).unwrap_err();
    let words = "two files for the tensor `a` of the set: `flux1-00001-of-00002.safetensors` and \
                 `flux1-00002-of-00002.safetensors`; fetch the set again";
    assert!(error.ends_with(words), "{error}");
}

#[test]
fn an_index_without_its_shards_does_not_hide_a_whole_variant_and_is_named_without_one() {
    let folder = folder(&[("model.fp16.safetensors", "a")]);
    let index = r#"{"weight_map": {"b": "model-00001-of-00001.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(opened(folder.path()).unwrap(), ["a"]);
    assert!(Store::found_in(folder.path()));
    std::fs::remove_file(folder.path().join("model.fp16.safetensors")).unwrap();
    assert!(!Store::found_in(folder.path()));
    let error = opened(folder.path()).unwrap_err();
    let words = "no shard found; looked for `model-00001-of-00001.safetensors`, which the index names";
    assert!(error.contains(words), "{error}");
}

#[test]
fn the_files_of_gguf_split_are_opened_together_and_one_under_another_name_is_named() {
    let part = |number: u16, tensor: &str| {
        let entries = [
            entry("split.no", 2, &number.to_le_bytes()),
            entry("split.count", 2, &2_u16.to_le_bytes()),
        ];
        gguf_file(3, &entries, &[described(tensor, &[8], 0, 0)], &[0; 32])
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(folder.path().join(name), bytes).unwrap();
    write("x-00001-of-00002.gguf", part(0, "a"));
    write("x-00002-of-00002.gguf", part(1, "b"));
    assert_eq!(opened(folder.path()).unwrap(), ["a", "b"]);
    write("flux.gguf", part(1, "b"));
    assert_eq!(
        opened(&folder.path().join("flux.gguf")).unwrap_err(),
        "cannot load flux.gguf: cannot use this GGUF file: it is file 2 of 2 of a split model; name the files \
         `NAME-00001-of-00002.gguf` and so on again and put them into one folder, or join them with gguf-split --merge"
    );
}

#[test]
fn weights_that_other_programs_quantised_are_named_with_the_program() {
    for (tensor, program) in [
        ("transformer_blocks.0.qkv_proj.wscales", "nunchaku (SVDQuant)"),
        ("transformer_blocks.0.attn.to_q.weight._data", "optimum-quanto"),
        ("encoder.block.0.layer.0.SelfAttention.q.qweight", "GPTQ, AWQ or Marlin"),
        ("double_blocks.0.img_mlp.0._weight_qdata", "torchao"),
        (
            "double_blocks.0.img_mlp.0.weight_scale_2",
            "ModelOpt or ComfyUI (NVFP4)",
        ),
        ("double_blocks.0.img_mlp.0.weight_packed", "compressed-tensors"),
        ("transformer_blocks.0.attn.to_q.zero_point", "SDNQ"),
        ("transformer_blocks.0.attn.to_q.svd_up", "SDNQ"),
    ] {
        assert_eq!(
            found(&[("a.safetensors", tensor)]).unwrap_err(),
            format!(
                "cannot load a.safetensors: it is quantised by {program}, which is not read here; take the model in \
                 bf16, fp8 (plain or scaled), NF4 of bitsandbytes, or GGUF"
            )
        );
    }
}

#[test]
fn the_scale_of_a_quantised_weight_is_that_of_sdnq_and_the_scale_of_a_norm_is_none() {
    let open = |weight: Part, scale: &str| {
        let folder = folder(&[]);
        let parts = [Part::floats(scale, &[1.0]), weight];
        std::fs::write(folder.path().join("a.safetensors"), safetensors_file(&parts)).unwrap();
        opened(folder.path())
    };
    let quantised = Part::bytes("blocks.0.to_q.weight", "I8", &[1], &[1]);
    let error = open(quantised, "blocks.0.to_q.scale").unwrap_err();
    assert!(error.contains("it is quantised by SDNQ"), "{error}");
    for weight in ["blocks.0.norm.weight", "blocks.0.proj.weight"] {
        open(Part::floats(weight, &[1.0]), "blocks.0.norm.scale").unwrap();
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_in_place_of_weights_is_refused_and_does_not_block() {
    let folder = folder(&[]);
    for name in [
        "model.safetensors",
        "model.safetensors.index.json",
        "x-00001-of-00001.gguf",
    ] {
        let pipe = folder.path().join(name);
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(
            opened(&pipe).unwrap_err(),
            format!(
                "cannot access {name}: it is a pipe or a device, expected a file: weights are mapped into memory; \
                 write them to a file"
            )
        );
    }
    let error = opened(folder.path()).unwrap_err();
    assert!(
        error.contains("`model.safetensors`, which cannot be used (a pipe or a device)"),
        "{error}"
    );
}
