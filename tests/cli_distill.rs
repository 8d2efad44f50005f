//! The programs that distil a model to a few steps, and probe where a critic sees.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::Desk;
use common::known::{dataset, network};

const SHIPPED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/kontext-emoji");

/// Writes a dataset and a recipe of two steps for it.
fn recipe(desk: &Desk) {
    dataset(desk);
    let text = format!(
        r#"
model = "{SHIPPED}"
out = "unused"
steps = 2
device = "cpu"

[method]
kind = "lora"
rank = 2

[data]
folder = "data"
batch = 2
validation_items = 2

[objective]
kind = "adversarial"
warmup = 1
head_width = 8

[every]
save = 1
validate = 2
sample = 0
"#
    );
    std::fs::write(desk.path("ladd.toml"), text).unwrap();
}

#[test]
fn a_distillation_measures_student_control_and_teacher() {
    let desk = Desk::new();
    recipe(&desk);
    network(&desk);
    let args = [
        "--recipe",
        "ladd.toml",
        "--out",
        "runs",
        "--steps",
        "1,4",
        "--samplers",
        "euler",
        "--most",
        "3",
        "--features",
        "net.safetensors",
    ];
    let (out, _) = desk.good("distill", &args);
    for model in ["teacher", "ladd", "control"] {
        for steps in [1, 4] {
            assert!(out.contains(&format!("| {model} | euler | {steps} |")), "{out}");
        }
    }
    assert!(out.contains("; the baseline is teacher at 4 steps."), "{out}");
    for file in [
        "runs/ladd/lora.safetensors",
        "runs/control/lora.safetensors",
        "runs/few-steps.csv",
    ] {
        assert!(desk.path(file).is_file(), "{file}");
    }
    // The same command again finds both runs at their end.
    let (again, _) = desk.good("distill", &args);
    let numbers = |out: &str| -> Vec<String> {
        let without_seconds = |line: &str| line.rsplitn(3, '|').last().unwrap_or_default().to_owned();
        out.lines().map(without_seconds).collect()
    };
    assert_eq!(numbers(&again), numbers(&out));
}

#[test]
fn a_distillation_needs_an_adversarial_recipe() {
    let desk = Desk::new();
    recipe(&desk);
    let path = desk.path("ladd.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let (flow, _) = text.split_once("[objective]").unwrap();
    std::fs::write(&path, flow).unwrap();
    desk.bad(
        "distill",
        &["--recipe", "ladd.toml"],
        "ladd.toml: its objective is not adversarial",
    );
}

#[test]
fn a_probe_has_a_row_for_each_level() {
    let desk = Desk::new();
    recipe(&desk);
    let args = [
        "--recipe",
        "ladd.toml",
        "--levels",
        "0.1,0.5",
        "--training",
        "3",
        "--held-out",
        "2",
        "--steps",
        "1",
    ];
    let (out, _) = desk.good("ladd_probe", &args);
    for level in ["0.100 ", "0.500 "] {
        assert!(out.lines().any(|line| line.starts_with(level)), "{out}");
    }
}
