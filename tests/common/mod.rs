//! Small random models in temporary folders, to be damaged, and the example programs.
// Each test file uses some of these helpers.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod desk;
pub mod known;
pub mod loras;
pub mod many;
pub mod options_doc;
pub mod shipped;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use kontext::crates::kontext_formats::save;
use kontext::{Layout, Tensor, Weights, random_model};
use tempfile::TempDir;

static MODELS: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    random_model(folder.path().join("diffusers"), 7, Layout::Diffusers).unwrap();
    random_model(folder.path().join("single"), 7, Layout::SingleFiles).unwrap();
    folder
});

/// Returns an intact model, which no test may change.
pub fn model(layout: Layout) -> PathBuf {
    MODELS.path().join(if layout == Layout::Diffusers {
        "diffusers"
    } else {
        "single"
    })
}

/// Returns a copy that a test may damage.
pub fn copy(layout: Layout) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy_folder(&model(layout), folder.path());
    folder
}

fn copy_folder(from: &Path, to: &Path) {
    kontext_core::create_folder(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Returns the tensors of a file, in memory.
pub fn tensors(path: &Path) -> Vec<(String, Tensor)> {
    let weights = Weights::open(path).unwrap();
    weights
        .names()
        .into_iter()
        .map(|name| (name.clone(), weights.raw(&name).unwrap()))
        .collect()
}

/// Replaces one tensor of a file.
pub fn replace(path: &Path, name: &str, change: impl FnOnce(&Tensor) -> Tensor) {
    let mut all = tensors(path);
    let tensor = all.iter_mut().find(|(n, _)| n == name).unwrap();
    tensor.1 = change(&tensor.1);
    save(path, &all, None).unwrap();
}

/// Renames one tensor of a file.
pub fn rename(path: &Path, from: &str, to: &str) {
    let mut all = tensors(path);
    all.iter_mut().find(|(n, _)| n == from).unwrap().0 = to.to_owned();
    save(path, &all, None).unwrap();
}

/// Adds a tensor to a file.
pub fn add(path: &Path, name: &str) {
    let mut all = tensors(path);
    all.push((name.to_owned(), Tensor::from_slice(&[1.0_f32])));
    save(path, &all, None).unwrap();
}

/// Truncates a file.
pub fn truncate(path: &Path, bytes: u64) {
    std::fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

/// Returns a program that `cargo test` built next to this test.
pub fn program(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(Path::parent).unwrap().join("examples");
    let path = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.is_file(),
        "{} is not there; `cargo build --examples` makes it",
        path.display()
    );
    let mut command = Command::new(path);
    // Tests run in parallel; more threads in each would only compete.
    command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
    command
}

/// Returns the signal of a terminal that is closed; a request to end instead if the tests run under `nohup`, whose
/// programs ignore it.
pub fn hang_up() -> &'static str {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = mask.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).unwrap() & 1 == 1);
    if ignored { "-TERM" } else { "-HUP" }
}

/// Returns a program's exit code, stdout and stderr.
pub fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}
