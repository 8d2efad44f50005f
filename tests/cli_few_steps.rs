//! The program that measures a model and its few-step students.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::Desk;
use image::{Rgb, RgbImage};
use kontext::crates::kontext_formats::save;
use kontext::{Device, Weights};
use kontext_bench::metrics::{Backbone, Features};
use serde_json::{Value, json};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");

/// Writes a dataset of three held-out edits with one reference image, and one without.
fn dataset(desk: &Desk) {
    let folder = desk.path("data");
    std::fs::create_dir(&folder).unwrap();
    let mut lines = String::new();
    for number in 0..4_u32 {
        let image = |level: u32| {
            RgbImage::from_fn(64, 64, |x, y| {
                Rgb([(x * number * 3 % 200) as u8, (y * level % 90) as u8, (level * 40) as u8])
            })
        };
        image(1).save(folder.join(format!("{number}-a.png"))).unwrap();
        image(5).save(folder.join(format!("{number}-b.png"))).unwrap();
        let source = if number == 1 {
            json!([])
        } else {
            json!([format!("{number}-a.png")])
        };
        let line = json!({"source": source, "target": format!("{number}-b.png"), "instruction": "make it blue", "category": "c", "split": "test"});
        lines.push_str(&format!("{line}\n"));
    }
    std::fs::write(folder.join("metadata.jsonl"), lines).unwrap();
}

/// Writes a random SqueezeNet.
fn network(desk: &Desk) {
    let synthetic = Weights::synthetic(5);
    Features::new(Backbone::SqueezeNet11, &synthetic, Device::Cpu).unwrap();
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let value = synthetic.tensor(&name, &shape).unwrap();
        (name, value)
    };
    let tensors: Vec<_> = synthetic.shapes().into_iter().map(tensor).collect();
    save(desk.path("net.safetensors"), &tensors, None).unwrap();
}

#[test]
fn a_student_with_the_teachers_weights_has_its_numbers() {
    let desk = Desk::new();
    dataset(&desk);
    network(&desk);
    let transformer = format!("{SHIPPED}/transformer");
    let args = [
        "--data",
        "data",
        "--device",
        "cpu",
        "--steps",
        "1,2",
        "--diverse",
        "2",
        "--features",
        "net.safetensors",
        "--student",
        &transformer,
        "--student",
        SHIPPED,
        "--csv",
        "t.csv",
        "--json",
        "t.json",
    ];
    let (out, err) = desk.good("few_steps", &args);
    assert!(
        out.contains("| the autoencoder's truths | - | - |") && out.contains("3 edits; KID is kid-squeezenet1.1."),
        "{out}"
    );
    assert!(err.contains("teacher, 2 steps: "), "{err}");
    let json: Value = serde_json::from_str(&std::fs::read_to_string(desk.path("t.json")).unwrap()).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 7);
    // The teacher, the transformer and the model: equal but for their names and times.
    let numbers = |row: &Value| {
        let mut row = row.as_object().unwrap().clone();
        for key in ["model", "seconds"] {
            row.remove(key).unwrap();
        }
        row
    };
    for step in [1, 2] {
        assert!(
            rows[step]["kid"].is_number() && rows[step]["diversity"].as_f64().unwrap() > 0.0,
            "{json}"
        );
        for student in [2 + step, 4 + step] {
            assert_eq!(numbers(&rows[step]), numbers(&rows[student]));
        }
    }
    assert_ne!(numbers(&rows[1]), numbers(&rows[2]));
    let csv = std::fs::read_to_string(desk.path("t.csv")).unwrap();
    assert_eq!(csv.lines().count(), 8, "{csv}");
}

#[test]
fn without_a_network_the_table_says_why_kid_is_empty() {
    let desk = Desk::new();
    dataset(&desk);
    let args = [
        "--data",
        "data",
        "--device",
        "cpu",
        "--steps",
        "1",
        "--most",
        "1",
        "--diverse",
        "0",
    ];
    let (out, _) = desk.good("few_steps", &args);
    assert!(
        out.contains("1 edits; KID is empty, because there is no feature network."),
        "{out}"
    );
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let desk = Desk::new();
    dataset(&desk);
    let bad = |args: &[&str], words: &str| desk.bad("few_steps", &[&["--data", "data"], args].concat(), words);
    bad(
        &["--split", "none"],
        "data has no edits of split `none` with one reference image",
    );
    bad(
        &["--student", "none"],
        "there is no none; name a LoRA, a transformer or a model",
    );
    bad(
        &["--student", "data"],
        "data is no student: no LoRA, transformer or model",
    );
    bad(&["--students-only"], "--student <PATH>");
    bad(&["--steps", "1,0"], "expected a whole number of at least 1");
    bad(&["--csv", "t", "--json", "t"], "--csv and --json would write one file");
    bad(&["--csv", "data/0-a.png"], "which the run reads (--data)");
    bad(&["--features", "data/0-a.png"], "0-a.png");
}
