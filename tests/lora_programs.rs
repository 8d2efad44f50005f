//! LoRAs on the command line: files, folders, names, scales, and what a program allows.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::loras::Model;
use common::{program, tensors, told};
use kontext::{Device, Kind, Tensor};

fn run(name: &str, args: &[&str]) -> (Option<i32>, String, String) {
    told(&program(name).args(args).stdin(Stdio::null()).output().unwrap())
}

/// Generates an image with these flags; returns its pixels.
fn generate(model: &Model, flags: &[&str]) -> Vec<u8> {
    let (folder, out) = (model.path().display().to_string(), model.path().join("out.png"));
    let out_name = out.display().to_string();
    let fixed = [
        "--model", &folder, "--device", "cpu", "--prompt", "a cat", "--out", &out_name,
    ];
    let fixed = [&fixed[..], &["--max-area", "1024", "--steps", "1", "--seed", "3"]].concat();
    let (code, stdout, err) = run("generate", &[&fixed, flags].concat());
    assert_eq!(code, Some(0), "{flags:?}\n{stdout}{err}");
    image::open(out).unwrap().to_rgb8().into_raw()
}

/// Returns the error of a program that must fail.
fn refused(name: &str, args: &[&str]) -> String {
    let (code, out, err) = run(name, args);
    assert_eq!(code, Some(1), "{name} {args:?}\n{out}{err}");
    err.lines().last().unwrap().to_owned()
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

/// Puts a LoRA into a folder of its own, as diffusers does.
fn in_folder(model: &Model, name: &str) -> PathBuf {
    let folder = model.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(model.lora(name), folder.join("pytorch_lora_weights.safetensors")).unwrap();
    std::fs::write(folder.join("README.md"), "").unwrap();
    folder
}

/// Writes a LoRA with one tensor more.
fn with(model: &Model, name: &str, more: Tensor) -> String {
    let mut all = tensors(&model.lora("red"));
    all.retain(|(own, _)| own != name);
    all.push((name.to_owned(), more));
    let path = model.lora("more");
    kontext_formats::save(&path, &all, None).unwrap();
    text(path)
}

#[test]
fn loras_are_given_by_their_folders_and_several_by_one_file_name() {
    let model = Model::new();
    let folders = ["red", "blue"].map(|name| in_folder(&model, name));
    let file = text(folders[1].join("pytorch_lora_weights.safetensors"));
    let files = ["red", "blue"].map(|name| text(model.lora(name)));
    let expected = generate(
        &model,
        &["--lora", &files[0], "--lora", &files[1], "--lora-scale", "0.5"],
    );
    let found = generate(
        &model,
        &["--lora", &text(&folders[0]), "--lora", &file, "--lora-scale", "0.5"],
    );
    assert_eq!(found, expected);
    assert_ne!(found, generate(&model, &["--lora", &files[0], "--lora-scale", "0.5"]));
    let error = refused(
        "generate",
        &["--device", "cpu", "--lora", &file, "--lora", &text(&folders[1])],
    );
    assert!(
        error.ends_with("twice; give it once, with a higher --lora-scale"),
        "{error}"
    );
}

#[test]
fn scales_without_a_lora_are_errors() {
    let error = refused("generate", &["--device", "cpu", "--lora-scale", "0.5"]);
    assert_eq!(
        error,
        "error: the following required arguments were not provided: --lora <FILE>; for more information, try '--help'"
    );
    let words = [
        "--device",
        "cpu",
        "--lora",
        "x",
        "--lora-scale",
        "0.5",
        "--lora-strength",
        "1",
    ];
    assert!(refused("generate", &words).contains("--lora-scale is given 2 times, and --lora 1 times"));
    for flag in ["--fuse-loras", "--allow-no-effect", "--allow-unmatched=*"] {
        let error = refused("generate", &["--device", "cpu", flag]);
        assert!(error.contains("not provided: --lora <FILE>"), "{flag}: {error}");
    }
}

#[test]
fn what_matches_nothing_is_left_out_by_a_flag_that_the_error_names() {
    let model = Model::new();
    let ones = Tensor::ones([2, 768], (Kind::Float, Device::Cpu));
    let lora = with(&model, "bundle_emb.style.clip_l", ones);
    for name in ["generate", "inspect"] {
        let folder = text(model.path());
        let words: &[&str] = &["--model", &folder, "--device", "cpu", "--lora", &lora];
        let error = refused(name, if name == "inspect" { &words[5..] } else { words });
        assert!(
            error.contains("`bundle_emb.style.clip_l` (no factor of LoRA") && error.contains("(`allow_unmatched`)"),
            "{error}"
        );
        assert!(error.ends_with("do so with `--allow-unmatched PATTERN`"), "{error}");
    }
    let red = text(model.lora("red"));
    let allowed = generate(&model, &["--lora", &lora, "--allow-unmatched", "bundle_emb.*"]);
    assert_eq!(allowed, generate(&model, &["--lora", &red]));
}

#[test]
fn inspect_knows_a_folder_of_a_lora_and_names_factors_that_are_not_finite() {
    let model = Model::new();
    let folder = text(in_folder(&model, "red"));
    let (code, out, err) = run("inspect", &[&folder]);
    assert_eq!(code, Some(0), "{err}");
    assert!(
        out.contains("naming:    diffusers (PEFT)") && out.ends_with("complete\n"),
        "{out}"
    );
    let name = "transformer.x_embedder.lora_B.weight";
    let up = tensors(&model.lora("red"))
        .into_iter()
        .find(|(own, _)| own == name)
        .unwrap()
        .1;
    let lora = with(&model, name, up * f64::NAN);
    let (code, out, err) = run("inspect", &[&lora]);
    assert_eq!(code, Some(1), "{out}");
    assert!(
        out.contains(&format!("not finite: `{name}` (it holds NaN or infinity)")),
        "{out}"
    );
    assert!(
        err.contains(&format!("`{name}` of its ")) && err.contains("hold NaN or infinity"),
        "{err}"
    );
    std::fs::copy(&lora, Path::new(&folder).join("adapter_model.safetensors")).unwrap();
    let error = refused("generate", &["--device", "cpu", "--lora", &folder]);
    assert!(
        error.contains("two files for the LoRA: `adapter_model.safetensors` and `pytorch_lora_weights.safetensors`; name one of them"),
        "{error}"
    );
}
