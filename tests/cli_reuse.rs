//! The program that compares modes of reuse with the exact run.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::Desk;
use common::known::dataset;

#[test]
fn a_mode_that_computes_all_steps_is_exact_and_one_that_skips_some_is_not() {
    let desk = Desk::new();
    dataset(&desk);
    let args = [
        "--data", "data", "--device", "cpu", "--steps", "12", "--most", "2", "--csv", "t.csv", "--plot", "t.svg",
    ];
    let modes = ["--mode", "taylor:interval=1", "--mode", "taylor:interval=4"];
    let (out, err) = desk.good("reuse", &[&args[..], &modes].concat());
    assert!(out.contains("| exact | 12 | 100 % | 1.00 |"), "{out}");
    assert!(
        out.contains("| `taylor:interval=1` | 12.0 | 100 % | 1.00 | 60.0 ± 0.0 | 1.0000 |"),
        "{out}"
    );
    assert!(out.contains("2 edits of 12 steps; PDist is empty"), "{out}");
    assert!(err.contains("taylor:interval=4: "), "{err}");
    let csv = std::fs::read_to_string(desk.path("t.csv")).unwrap();
    let taylor: Vec<&str> = csv.lines().last().unwrap().split(',').collect();
    // Steps 0 to 2, 4, 8 and the last.
    let (computed, flops, decibels) = (taylor[2], taylor[3], taylor[4]);
    assert_eq!((taylor[0], computed), ("taylor:interval=4", "6.0"), "{csv}");
    let (flops, decibels): (f64, f64) = (flops.parse().unwrap(), decibels.parse().unwrap());
    assert!((0.5..0.7).contains(&flops) && (15.0..60.0).contains(&decibels), "{csv}");
    assert!(std::fs::read_to_string(desk.path("t.svg")).unwrap().contains("taylor"));
}

#[test]
fn what_is_no_mode_is_refused() {
    let desk = Desk::new();
    dataset(&desk);
    let bad = |args: &[&str], words: &str| desk.bad("reuse", &[&["--data", "data"], args].concat(), words);
    bad(&["--mode", "none"], "off, magcache, first-block, teacache or taylor");
    bad(
        &["--split", "none"],
        "data has no edits of split `none` with one reference image",
    );
    bad(&["--csv", "t", "--plot", "t"], "--csv and --plot would write one file");
}
