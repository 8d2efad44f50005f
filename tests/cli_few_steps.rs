//! The program that measures a model and its few-step students.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::Desk;
use common::known::{dataset, network};
use serde_json::Value;

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");

/// Measures the first edit of the dataset, with these flags; returns stdout.
fn measure_one(desk: &Desk, more: &[&str]) -> String {
    let args = ["--data", "data", "--device", "cpu", "--most", "1", "--diverse", "0"];
    desk.good("few_steps", &[&args, more].concat()).0
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
        "--samplers",
        "euler",
        "--diverse",
        "2",
        "--features",
        "net.safetensors",
        "--baseline",
        "2",
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
        out.contains("| the autoencoder's truths | - | - |")
            && out.contains("3 edits; KID is kid-squeezenet1.1; the baseline is teacher at 2 steps."),
        "{out}"
    );
    assert!(err.contains("teacher, euler, 2 steps: "), "{err}");
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
            let mut row = numbers(&rows[student]);
            if step == 2 {
                // The baseline has no difference to itself.
                for end in ["", "_low", "_high"] {
                    assert_eq!(
                        row.insert(format!("kid_above_baseline{end}"), Value::Null),
                        Some(0.0.into())
                    );
                }
            }
            assert_eq!(numbers(&rows[step]), row);
        }
    }
    assert_ne!(numbers(&rows[1]), numbers(&rows[2]));
    let csv = std::fs::read_to_string(desk.path("t.csv")).unwrap();
    assert_eq!(csv.lines().count(), 8, "{csv}");
}

#[test]
fn a_sampler_that_adds_noise_is_run_from_two_steps_on() {
    let desk = Desk::new();
    dataset(&desk);
    let out = measure_one(&desk, &["--steps", "1,2"]);
    for run in ["euler | 1", "euler | 2", "consistency | 2"] {
        assert!(out.contains(&format!("| teacher | {run} |")), "{out}");
    }
    assert!(!out.contains("| consistency | 1 |"), "{out}");
    desk.bad(
        "few_steps",
        &["--samplers", "none"],
        "euler, consistency, heun or dpmpp_2m",
    );
}

#[test]
fn without_a_network_the_table_says_why_kid_is_empty() {
    let desk = Desk::new();
    dataset(&desk);
    let out = measure_one(&desk, &["--steps", "1"]);
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
    bad(
        &["--baseline", "3", "--features", "none"],
        "--baseline 3 is not one of --steps",
    );
    bad(&["--baseline", "4"], "--features <FILE>");
    bad(&["--steps", "1,0"], "expected a whole number of at least 1");
    bad(&["--csv", "t", "--json", "t"], "--csv and --json would write one file");
    bad(&["--csv", "data/0-a.png"], "which the run reads (--data)");
    bad(&["--features", "data/0-a.png"], "0-a.png");
}
