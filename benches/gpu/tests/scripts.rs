//! Tests of the kit's scripts: the runner with injected faults, the answer without a driver, and the page of
//! results.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // For the tests' helper functions.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

/// Runs a script of the kit with the system's Python; `None` if there is no Python.
fn script(name: &str, arguments: &[&str]) -> Option<Output> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    match Command::new("python3")
        .arg(path)
        .args(arguments)
        .env("OMP_NUM_THREADS", "1")
        .output()
    {
        Ok(output) => Some(output),
        Err(_) => {
            println!("skipped: there is no python3");
            None
        }
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Runs the stage `faults` on the CPU. A program may hold a twentieth of the free memory, so that the runner
/// stops it before the memory is exhausted.
#[test]
fn a_crash_a_hang_and_an_exhausted_memory_are_rows_and_the_cases_behind_them_run() {
    let folder = tempfile::tempdir().unwrap();
    let (kit, out) = (folder.path().join("kit"), folder.path().join("out"));
    std::fs::create_dir(&kit).unwrap();
    std::fs::write(kit.join("commit.txt"), "abc\n2026-01-01\n").unwrap();
    let (kit, program) = (kit.to_str().unwrap(), env!("CARGO_BIN_EXE_gpu-kit"));
    let run = ["--program", program, "--cpu", "--only", "faults", "--memory", "0.05"];
    let Some(run) = script("run.py", &[&[kit, out.to_str().unwrap()], &run[..]].concat()) else {
        return;
    };
    let said = said(&run);
    // Bad rows make the run itself fail.
    assert_eq!(run.status.code(), Some(1), "{said}");
    let results: Value = serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(results["kit"]["commit"], "abc");
    assert_eq!(results["stages"][0]["status"], "ended", "{said}");
    let rows = results["rows"].as_array().unwrap().iter();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let rows: BTreeMap<String, (String, String)> = rows
        .map(|row| (text(row, "name"), (text(row, "status"), text(row, "note"))))
        .collect();
    for (name, status, note) in [
        ("an error", "failed", "an error, with a cause"),
        ("a panic", "failed", "a panic: a panic, with a cause"),
        ("a crash", "crashed", "ended by SIGABRT"),
        ("an end", "crashed", "ended with code 7"),
        ("a hang", "timed-out", "no result after 10 s"),
        ("all memory of the machine", "killed", "it held more than"),
        (
            "all memory of the device",
            "skipped",
            "the device is the machine itself",
        ),
    ] {
        let (got, told) = &rows[name];
        assert_eq!(got, status, "{name}: {told}");
        assert!(told.starts_with(note), "{name}: {told}");
    }
    let after: Vec<_> = rows.iter().filter(|(name, _)| name.starts_with("after ")).collect();
    assert_eq!(after.len(), 7);
    assert!(after.iter().all(|(_, (status, _))| status == "passed"), "{after:?}");
}

/// Runs a program that prints a malformed row and leaves a child that holds its output open.
#[test]
fn a_row_that_cannot_be_read_is_a_row_and_what_a_program_leaves_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (program, out) = (folder.path().join("program"), folder.path().join("out"));
    let text = "#!/bin/sh\nsleep 600 &\necho '@begin a'\necho '@row {\"name\": \"a\"}'\necho '@begin b'\nexit 4\n";
    std::fs::write(&program, text).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).unwrap();
    let arguments = [folder.path(), &out].map(|path| path.to_str().unwrap());
    let run = ["--program", program.to_str().unwrap(), "--cpu", "--only", "faults"];
    let Some(run) = script("run.py", &[&arguments[..], &run[..]].concat()) else {
        return;
    };
    let results: Value = serde_json::from_slice(&std::fs::read(out.join("results.json")).unwrap()).unwrap();
    let rows = results["rows"].as_array().unwrap();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["status"]),
        (&json!("a"), &json!("failed")),
        "{}",
        said(&run)
    );
    assert!(
        rows[0]["note"].as_str().unwrap().starts_with("its row cannot be read"),
        "{}",
        said(&run)
    );
    assert_eq!(
        (&rows[1]["name"], &rows[1]["status"]),
        (&json!("b"), &json!("crashed")),
        "{}",
        said(&run)
    );
    assert!(results["run"]["seconds"].as_f64().unwrap() < 60.0, "{}", said(&run));
}

#[test]
fn without_a_driver_each_program_says_so_in_a_sentence() {
    if kontext_device::device::available(kontext::Device::Cuda(0)).is_ok() {
        println!("skipped: this machine has a CUDA device");
        return;
    }
    for arguments in [&["check", "--inputs", "none"][..], &["speed"], &["plant"]] {
        let run = Command::new(env!("CARGO_BIN_EXE_gpu-kit"))
            .args(arguments)
            .output()
            .unwrap();
        assert_eq!(run.status.code(), Some(0));
        let said = said(&run);
        let row = said.lines().find_map(|line| line.strip_prefix("@row ")).unwrap();
        let row: Value = serde_json::from_str(row).unwrap();
        assert_eq!((&row["name"], &row["status"]), (&json!("device"), &json!("skipped")));
        assert!(
            row["note"]
                .as_str()
                .unwrap()
                .starts_with("device cuda:0 is not available: "),
            "{said}"
        );
    }
}

/// The page contains every row of the results, and results of a CPU run are refused.
#[test]
fn the_page_tells_every_row_with_its_card_date_commit_and_command() {
    let folder = tempfile::tempdir().unwrap();
    let (results, page) = (folder.path().join("results.json"), folder.path().join("gpu.md"));
    let row = |stage: &str, name: &str, status: &str, values: Value, note: &str| json!({"stage": stage, "name": name, "status": status, "values": values, "note": note, "seconds": 0.5});
    let mut content = json!({
        "format": 1,
        "kit": {"commit": "abc123", "date": "2026-01-02"},
        "run": {"date": "2026-01-03 04:05 UTC", "command": "bash check.sh KIT OUT", "cpu": false, "seconds": 400.0},
        "stages": [{"stage": "speed", "status": "timed-out", "seconds": 1.0, "rows": 1, "command": "", "note": "its 1 s were over"}],
        "rows": [
            row("facts", "card", "measured", json!({"name": "NVIDIA H100", "driver": "580.1"}), ""),
            row("correctness", "f32/edit", "failed", json!({"relative L2": 0.5, "relative L2, allowed": 1e-4}), "step 1: 5e-1"),
            row("speed", "edit 1024/kontext", "measured", json!({"ms": 300.25, "kernels": 2500}), ""),
            row("speed", "t2i 1024/kontext", "crashed", json!({"ms": 1.0}), ""),
            row("opponents", "edit 1024/eager", "measured", json!({"ms": 400.0}), ""),
            row("ratios", "edit 1024/kontext over eager", "measured",
                json!({"ratio": 0.75, "kontext_ms": 300.25, "opponent_ms": 400.0}), ""),
        ],
    });
    let write = |content: &Value| std::fs::write(&results, content.to_string()).unwrap();
    write(&content);
    let arguments = [results.to_str().unwrap(), "--out", page.to_str().unwrap()];
    let Some(run) = script("report.py", &arguments) else {
        return;
    };
    assert_eq!(run.status.code(), Some(0), "{}", said(&run));
    let text = std::fs::read_to_string(&page).unwrap();
    for part in [
        "NVIDIA H100, 2026-01-03 04:05 UTC",
        "abc123",
        "bash check.sh KIT OUT",
        "580.1",
        "f32/edit",
        "step 1: 5e-1",
        "300.25",
        "2500",
        "0.750",
        "its 1 s were over",
        "4 measured, 1 failed, 1 crashed",
    ] {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
    assert!(!text.contains("Not measured yet"));
    // Each goal has its verdict, on the page and on the screen.
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("| edit step, bf16 |"))
        .collect();
    assert_eq!(lines, ["| edit step, bf16 | at most 265 ms | 300.2 ms | missed |"]);
    assert!(
        text.contains("| text-to-image step, bf16 | at most 118 ms |  | not measured |"),
        "{text}"
    );
    let times = "edit step, bf16, times as fast as diffusers eager: missed (1.332, at least 1.5)";
    assert!(said(&run).contains(times), "{}", said(&run));
    content["run"]["cpu"] = json!(true);
    write(&content);
    let refused = script("report.py", &arguments).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("leave it away"), "{}", said(&refused));
}

/// Until results from a GPU exist, the repository's page is the one that the script writes without results.
#[test]
fn the_repositorys_page_is_what_the_script_writes() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("gpu.md");
    let Some(run) = script("report.py", &["--out", page.to_str().unwrap()]) else {
        return;
    };
    assert_eq!(run.status.code(), Some(0), "{}", said(&run));
    let (written, kept) = (
        std::fs::read_to_string(page).unwrap(),
        Path::new(env!("CARGO_MANIFEST_DIR")),
    );
    let kept = std::fs::read_to_string(kept.join("../../docs/gpu.md")).unwrap();
    if kept.contains("Not measured yet") {
        assert_eq!(kept, written, "run `python3 benches/gpu/report.py`");
    }
}
