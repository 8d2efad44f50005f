//! The example programs that measure: notes of their runs, empty results, and files that they read.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::Path;

use common::desk::Desk;
use common::{copy, told};
use image::{Rgb, RgbImage};
use kontext::Layout;
use serde_json::json;

/// Writes a dataset of two held-out edits with a text that no encoder knows.
fn dataset(desk: &Desk) {
    let folder = desk.path("data");
    std::fs::create_dir(&folder).unwrap();
    for (name, level) in [("a.png", 40), ("b.png", 200)] {
        let image = RgbImage::from_fn(64, 64, |x, _| Rgb([if x < 40 { 40 } else { level }, 90, 9]));
        image.save(folder.join(name)).unwrap();
    }
    let line = |category: &str| json!({"source": "a.png", "target": "b.png", "instruction": "add 漢字", "category": category, "split": "test"});
    let lines = ["local/clock", "local/hair"].map(|category| format!("{}\n", line(category)));
    std::fs::write(folder.join("metadata.jsonl"), lines.concat()).unwrap();
    std::fs::write(folder.join("LICENSE.txt"), "").unwrap();
}

/// Writes a bench of two pairs.
fn bench(desk: &Desk) {
    let images = desk.path("bench/test/images");
    kontext::crates::kontext_core::create_folder(&images).unwrap();
    RgbImage::from_pixel(64, 64, Rgb([40, 90, 9]))
        .save(images.join("a.png"))
        .unwrap();
    let line = |key: &str| json!({"file_name": "images/a.png", "instruction": "add 漢字", "category": "Text Editing", "key": key});
    let lines = ["0000_00", "0000_01"].map(|key| format!("{}\n", line(key)));
    std::fs::write(desk.path("bench/test/metadata.jsonl"), lines.concat()).unwrap();
}

const UNKNOWN: &str = "T5 does not know this of the prompt: “漢字”\n";

#[test]
fn text_that_an_encoder_does_not_see_is_noted_once_by_evaluate_and_drift() {
    let desk = Desk::new();
    dataset(&desk);
    for (name, args) in [("evaluate", &["--device", "cpu"][..]), ("drift", &["--maps-only"])] {
        let (_, err) = desk.good(name, &[&["--data", "data"], args].concat());
        assert_eq!(err.matches(UNKNOWN).count(), 1, "{name}: {err}");
    }
}

#[test]
fn text_that_an_encoder_does_not_see_is_noted_for_each_pair_by_kontextbench() {
    let desk = Desk::new();
    bench(&desk);
    let args = [
        "--bench",
        "bench",
        "--out",
        "run",
        "--device",
        "cpu",
        "--steps",
        "1",
        "--guidance",
        "3",
    ];
    let (_, err) = desk.good("kontextbench", &args);
    for key in ["0000_00", "0000_01"] {
        assert_eq!(err.matches(&format!("{key}: {UNKNOWN}")).count(), 1, "{err}");
    }
    // The same warning of all pairs is one line.
    assert_eq!(err.matches("warning: guidance 3 has no effect").count(), 1, "{err}");
}

#[test]
fn nothing_to_measure_is_an_error() {
    let desk = Desk::new();
    dataset(&desk);
    let bad = |name: &str, args: &[&str], words: &str| desk.bad(name, &[&["--data", "data"], args].concat(), words);
    bad("evaluate", &["--split", "none"], "data has no edits of split `none`");
    bad(
        "emoji_bench",
        &["--split", "none", "--out", "b"],
        "data has no edits of split `none`",
    );
    for (name, flag) in [
        ("evaluate", "--most"),
        ("emoji_bench", "--most"),
        ("emoji_bench", "--size"),
        ("drift", "--turns"),
        ("drift", "--each"),
    ] {
        bad(name, &[flag, "0"], "expected a whole number of at least 1");
    }
    let args = ["--bench", "b", "--out", "r", "--limit", "0"];
    desk.bad("kontextbench", &args, "expected a whole number of at least 1");
    // Walks begin with held-out edits of other categories than this dataset's.
    let (code, _, err) = told(&desk.run("drift", &["--data", "data", "--plot", "p.svg"]));
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("error: the dataset has no walks of 10 turns (There and back)"),
        "{err}"
    );
    assert!(!desk.path("p.svg").exists());
}

#[test]
fn strips_of_evaluate_replace_no_file_unless_on_request() {
    let desk = Desk::new();
    dataset(&desk);
    std::fs::create_dir(desk.path("strips")).unwrap();
    std::fs::write(desk.path("strips/local-hair.png"), "mine").unwrap();
    let args = ["--data", "data", "--device", "cpu", "--strips", "strips"];
    let words = "--strips would replace strips/local-hair.png; choose another folder, or add --overwrite";
    desk.bad("evaluate", &args, words);
    assert_eq!(std::fs::read(desk.path("strips/local-hair.png")).unwrap(), b"mine");
    desk.good("evaluate", &[&args[..], &["--overwrite"]].concat());
    for name in ["local-hair.png", "local-clock.png"] {
        assert!(kontext::open_image(desk.path("strips").join(name)).is_ok());
    }
}

#[test]
fn no_program_replaces_a_file_that_it_reads() {
    let desk = Desk::new();
    dataset(&desk);
    bench(&desk);
    let folder = copy(Layout::Diffusers);
    let model = folder.path().display().to_string();
    let of_model = |name: &str| folder.path().join(name).display().to_string();
    let refused = |name: &str, args: &[&str], out: [&str; 2], flag: &str| {
        let before = std::fs::read(desk.0.path().join(out[1])).ok();
        let words = format!("which the run reads ({flag})");
        desk.bad(name, &[args, &out].concat(), &words);
        assert_eq!(std::fs::read(desk.0.path().join(out[1])).ok(), before);
    };
    for file in [
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_2/tokenizer.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
        "transformer/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ] {
        let file = of_model(file);
        assert!(Path::new(&file).is_file(), "{file}");
        let args = ["--model", &model, "--device", "cpu"];
        refused("generate", &args, ["--dump", &file], "--model");
        refused("evaluate", &args, ["--csv", &file], "--model");
        refused("drift", &args[..2], ["--plot", &file], "--model");
        refused(
            "quantize",
            &[&args[..2], &["--to", "q8_0"]].concat(),
            ["--out", &file],
            "--model",
        );
    }
    refused("evaluate", &["--data", "data"], ["--csv", "data/a.png"], "--data");
    refused(
        "drift",
        &["--data", "data"],
        ["--plot", "data/metadata.jsonl"],
        "--data",
    );
    let vae = of_model("vae");
    let named = format!("A={vae}");
    let table = ["--images", "data", "--vae", &named];
    refused("vae_table", &table, ["--strip", "data/a.png"], "--images");
    refused(
        "vae_table",
        &table,
        ["--markdown", &of_model("vae/config.json")],
        "--vae",
    );
    let run = ["--bench", "bench", "--model", &model, "--device", "cpu"];
    let refused = |out: &str, flag: &str| {
        let words = format!("in a folder that the run reads ({flag}); choose another folder");
        desk.bad("kontextbench", &[&run[..], &["--out", out]].concat(), &words);
    };
    for out in ["bench", "bench/test", "bench/test/images", "bench/test/images/run"] {
        refused(out, "--bench");
    }
    for out in [&model, &of_model("transformer"), &of_model("vae/run")] {
        refused(out, "--model");
    }
}

#[test]
fn results_in_the_folder_of_the_data_are_written_again() {
    let desk = Desk::new();
    dataset(&desk);
    bench(&desk);
    let vae = format!("A={}/models/kontext-emoji/vae", env!("CARGO_MANIFEST_DIR"));
    for _ in 0..2 {
        let table = [
            "--images",
            "data",
            "--vae",
            &vae,
            "--csv",
            "data/t.csv",
            "--device",
            "cpu",
        ];
        desk.good("vae_table", &table);
        desk.good(
            "evaluate",
            &["--data", "data", "--csv", "data/s.csv", "--device", "cpu"],
        );
        desk.good(
            "kontextbench",
            &[
                "--bench",
                "bench",
                "--out",
                "bench/test/run",
                "--device",
                "cpu",
                "--steps",
                "1",
            ],
        );
        let page = [
            "--bench",
            "bench",
            "--page",
            "bench/test/run",
            "--out",
            "bench/test/run/p.html",
        ];
        desk.good("kontextbench", &page);
    }
}
