//! The runner on planted faults: each is a row, and what stands behind it runs.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Runs the stage `faults` on the CPU. A program may hold a twentieth of the free memory, so that the exhausted memory is
/// noticed before it is one.
#[test]
fn a_crash_a_hang_and_an_exhausted_memory_are_rows_and_the_cases_behind_them_run() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (kit, out) = (folder.path().join("kit"), folder.path().join("out"));
    std::fs::create_dir(&kit).unwrap();
    std::fs::write(kit.join("commit.txt"), "abc\n2026-01-01\n").unwrap();
    let run = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("run.py"))
        .args([&kit, &out])
        .args(["--program", env!("CARGO_BIN_EXE_gpu-kit"), "--cpu", "--only", "faults", "--memory", "0.05"])
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    // Rows that are bad make the run's own end bad.
    assert_eq!(run.status.code(), Some(1), "{said}");
    let results: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["kit"]["commit"], "abc");
    assert_eq!(results["stages"][0]["status"], "ended", "{said}");
    let rows = results["rows"].as_array().unwrap().iter();
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows: BTreeMap<String, (String, String)> =
        rows.map(|row| (text(row, "name"), (text(row, "status"), text(row, "note")))).collect();
    for (name, status, note) in [
        ("an error", "failed", "an error, with a cause"),
        ("a panic", "failed", "a panic: a panic, with a cause"),
        ("a crash", "crashed", "ended by SIGABRT"),
        ("an end", "crashed", "ended with code 7"),
        ("a hang", "timed-out", "no result after 5 s"),
        ("all memory of the machine", "killed", "it held more than"),
        ("all memory of the device", "skipped", "the device is the machine itself"),
    ] {
        let (got, told) = &rows[name];
        assert_eq!(got, status, "{name}: {told}");
        assert!(told.starts_with(note), "{name}: {told}");
    }
    let after: Vec<_> = rows.iter().filter(|(name, _)| name.starts_with("after ")).collect();
    assert_eq!(after.len(), 7);
    assert!(after.iter().all(|(_, (status, _))| status == "passed"), "{after:?}");
}
