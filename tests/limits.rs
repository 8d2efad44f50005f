//! Runs on a machine that refuses memory, threads or file descriptors: an error in words, and no signal.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use common::{model, program, told};
use image::{ImageFormat, RgbImage, RgbaImage};
use kontext::crates::kontext_core::buffer;
use kontext::session::KeepUnchanged;
use kontext::{Device, Error, Layout, Pipeline, Request};

/// Names the model's folder, or the image, to a child of these tests.
const MODEL: &str = "KONTEXT_TEST_MODEL";
/// Names the side of the child's image.
const SIDE: &str = "KONTEXT_TEST_SIDE";
const MB: u64 = 1_000_000;

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// Returns the command of one of this file's ignored tests in a process of its own, under limits set by `ulimit`.
fn command(test: &str, limits: &str) -> Command {
    let shell = format!("ulimit -c 0; {limits}; exec \"$0\" \"$@\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &shell])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .env("OMP_NUM_THREADS", "1")
        .env("RAYON_NUM_THREADS", "2");
    command
}

/// Runs the child of an edit.
fn child(test: &str, side: u32, limits: &str) -> Output {
    let mut command = command(test, limits);
    command.env(MODEL, model(Layout::Diffusers)).env(SIDE, side.to_string());
    command.output().unwrap()
}

/// Returns the line of a child's stdout that starts with this word, without it.
fn line(output: &Output, word: &str) -> Option<String> {
    let (_, out, _) = told(output);
    out.lines().find_map(|line| line.strip_prefix(word)).map(str::to_owned)
}

/// Returns a number of `/proc/self/status`, in bytes.
fn status(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    1024 * value.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap()
}

fn load() -> Option<kontext::Result<Pipeline>> {
    let model = std::env::var_os(MODEL)?;
    let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(16);
    Some(builder.load(PathBuf::from(model)))
}

fn edit(side: u32) -> kontext::Result<Request> {
    let pixels = buffer::filled(90, 3 * side as usize * side as usize, "the image of a test")?;
    let image = RgbImage::from_raw(side, side, pixels).unwrap();
    Ok(Request::edit(image, "make it red").max_area(64 * 64).steps(1).seed(1))
}

/// Edits, writes a file, encodes in every format, and keeps the unchanged pixels in a session that is saved.
fn edit_and_save(pipe: kontext::Result<Pipeline>, side: u32, folder: &Path) -> kontext::Result<()> {
    let pipe = Arc::new(pipe?);
    let mut request = edit(side)?;
    let output = pipe.run(&request)?;
    output.save(folder.join("out.png"))?;
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP] {
        output.encode(0, format)?;
    }
    let mut session = pipe.session(output.image);
    request.images.clear();
    session.keep_unchanged = Some(KeepUnchanged::default());
    session.run(&request)?;
    session.save(folder.join("session"))
}

#[test]
#[ignore = "a child of another test"]
fn child_that_edits() {
    let folder = tempfile::tempdir().unwrap();
    let Some(pipe) = load() else { return };
    let side = std::env::var(SIDE).unwrap().parse().unwrap();
    match edit_and_save(pipe, side, folder.path()) {
        Ok(()) => println!("\nended: well"),
        Err(error) => println!("\nended: {}", chain(&error)),
    }
    println!("peak: {}", status("VmPeak:"));
}

#[test]
fn edits_under_every_limit_of_the_address_space_end_in_words() {
    let peak = |side| {
        let output = child("child_that_edits", side, "true");
        assert_eq!(line(&output, "ended: ").unwrap(), "well");
        line(&output, "peak: ").unwrap().parse::<u64>().unwrap()
    };
    let side = 3000;
    let (small, big) = (peak(64), peak(side));
    assert!(big > small + 3 * u64::from(side * side), "{small} {big}");
    let (first, last) = (small - 100 * MB, big + 80 * MB);
    let steps = 8;
    let mut ends = Vec::new();
    for step in 0..=steps {
        let limit = first + (last - first) / steps * step;
        let output = child("child_that_edits", side, &format!("ulimit -v {}", limit / 1024));
        let (code, out, err) = told(&output);
        let end = line(&output, "ended: ");
        println!("{} MB: {end:?}", limit / MB);
        assert_eq!(code, Some(0), "{} MB\n{out}{err}", limit / MB);
        ends.push(end.unwrap());
    }
    assert_eq!(ends.last().unwrap(), "well");
    assert!(ends.iter().filter(|end| *end != "well").count() >= 3, "{ends:?}");
    for end in ends {
        let words = ["MB", "the system refuses"];
        assert!(end == "well" || words.iter().any(|words| end.contains(words)), "{end}");
    }
}

#[test]
#[ignore = "a child of another test"]
fn child_that_opens_an_image() {
    let Some(path) = std::env::var_os(MODEL) else { return };
    match kontext::open_image(PathBuf::from(path)) {
        Ok(_) => println!("\nended: well"),
        Err(error) => println!("\nended: {}", chain(&error)),
    }
    println!("peak: {}", status("VmPeak:"));
}

#[test]
fn image_files_under_every_limit_of_the_address_space_are_opened_or_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let opened = |path: &Path, limits: &str| {
        let mut command = command("child_that_opens_an_image", limits);
        // Otherwise glibc maps 128 MB for a moment for each thread, and goes on without where it is refused.
        command.env("MALLOC_ARENA_MAX", "1");
        command.env(MODEL, path).output().unwrap()
    };
    for name in ["jpg", "webp"] {
        let file = |side: u32| {
            let path = folder.path().join(format!("{side}.{name}"));
            RgbImage::new(side, side).save(&path).unwrap();
            path
        };
        let (small, big) = (file(64), file(6000));
        let peak = |path: &Path| {
            let output = opened(path, "true");
            assert_eq!(line(&output, "ended: ").unwrap(), "well");
            line(&output, "peak: ").unwrap().parse::<u64>().unwrap()
        };
        let (first, last) = (peak(&small), peak(&big) + 20 * MB);
        let mut ends = Vec::new();
        for step in 0..=5 {
            let limit = first + 4 * MB + (last - first) / 5 * step;
            let output = opened(&big, &format!("ulimit -v {}", limit / 1024));
            let (code, out, err) = told(&output);
            let end = line(&output, "ended: ");
            println!("{name}, {} MB: {end:?}", limit / MB);
            assert_eq!(code, Some(0), "{} MB\n{out}{err}", limit / MB);
            ends.push(end.unwrap());
        }
        assert_eq!(ends.last().unwrap(), "well");
        assert!(ends[0].starts_with("cannot allocate"), "{ends:?}");
    }
}

#[test]
fn the_program_under_a_limit_of_the_address_space_ends_with_its_code_and_a_message() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("in.png");
    RgbImage::new(64, 64).save(&image).unwrap();
    let model = model(Layout::Diffusers);
    let run = |limit: &str| {
        let edit = program("edit");
        let mut command = Command::new("sh");
        let shell = format!("ulimit -c 0; ulimit -v {limit}; exec \"$0\" \"$@\"");
        command.args(["-c", &shell]).arg(edit.get_program());
        command.args(["--device", "cpu", "--steps", "1", "--seed", "1", "--prompt", "red"]);
        command.arg("--model").arg(&model).arg("--image").arg(&image);
        command.args(["--width", "512", "--height", "512"]);
        command.arg("--out").arg(folder.path().join("out.png"));
        command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "2");
        told(&command.output().unwrap())
    };
    assert_eq!(run("unlimited").0, Some(0));
    let mut failed = 0;
    for megabytes in (600..=1600).step_by(200) {
        let (code, out, err) = run(&(megabytes * 1000).to_string());
        println!("{megabytes} MB: {code:?} {}", err.lines().last().unwrap_or_default());
        // Where not even libtorch can be loaded, the loader's own code.
        assert!(
            matches!(code, Some(0 | 1 | 127)),
            "{megabytes} MB: {code:?}\n{out}{err}"
        );
        if code == Some(1) {
            assert!(err.lines().last().unwrap().starts_with("error: "), "{err}");
            failed += 1;
        }
    }
    assert!(failed > 0);
}

#[test]
#[ignore = "a child of another test"]
fn child_without_file_descriptors() {
    let Some(pipe) = load() else { return };
    let (pipe, request) = (pipe.unwrap(), edit(70).unwrap());
    let expected = pipe.run(&request).unwrap().image;
    let mut files = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        files.push(file);
    }
    let free = kontext::free_memory(Device::Cpu);
    let run = pipe.run(&request);
    let reload = load().unwrap();
    drop(files);
    assert_eq!(run.unwrap().image, expected);
    let error = free.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(
        chain(&error).contains("/proc/meminfo: it reports no memory; "),
        "{}",
        chain(&error)
    );
    println!("\nended: {}", chain(&reload.unwrap_err()));
    assert!(kontext::free_memory(Device::Cpu).unwrap() > 0);
    pipe.run(&request).unwrap();
}

#[test]
fn a_run_needs_no_file_descriptor_and_a_load_without_one_is_an_error() {
    let output = child("child_without_file_descriptors", 70, "ulimit -n 64");
    let (code, out, err) = told(&output);
    assert_eq!(code, Some(0), "{out}{err}");
    let end = line(&output, "ended: ").unwrap();
    assert!(end.contains("Too many open files"), "{end}");
}

#[test]
fn threads_that_the_system_refuses_are_an_error_of_the_program() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    RgbImage::new(64, 64).save(path("rgb.png")).unwrap();
    RgbaImage::new(64, 64).save(path("rgba.png")).unwrap();
    let palette = concat!(env!("CARGO_MANIFEST_DIR"), "/kontext-core/tests/pictures/palette.png");
    let images = [path("rgb.png"), path("rgba.png"), palette.into()];
    for image in images.iter().map(Some).chain([None]) {
        let mut command = program(if image.is_some() { "edit" } else { "generate" });
        // A stack that no address space holds.
        command.env("RUST_MIN_STACK", (1_u64 << 50).to_string());
        command.args(["--device", "cpu", "--steps", "1", "--prompt", "red"]);
        command.arg("--model").arg(model(Layout::Diffusers));
        command.arg("--out").arg(path("out.png"));
        if let Some(image) = image {
            command.arg("--image").arg(image);
        }
        let (code, _, err) = told(&command.output().unwrap());
        assert_eq!(code, Some(1), "{image:?}: {err}");
        let last = err.lines().last().unwrap();
        // Without an image, the thread that waits for Ctrl-C is the first.
        let words = image.map_or("the thread that waits for Ctrl-C", |_| "threads for parallel loops");
        assert!(last.starts_with("error: ") && last.contains(words), "{image:?}: {err}");
        assert!(!err.contains("panicked"), "{image:?}: {err}");
    }
}

/// A control group with a memory limit beneath that of this process, removed when it is dropped.
struct Group(PathBuf);

impl Group {
    /// Makes one with v1's or v2's files; `None` if this process may not, or has no memory controller there.
    fn new(limit: u64) -> Option<Self> {
        let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
        let of = |root: &str, prefix: &str| {
            let path = memberships.lines().find_map(|line| line.split_once(prefix))?.1;
            Some(PathBuf::from(format!("{root}{path}")))
        };
        let versions = [
            ("/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "0::", "memory.max"),
        ];
        versions.iter().find_map(|(root, prefix, file)| {
            let group = Self(of(root, prefix)?.join(format!("kontext-test-{}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(file), limit.to_string()).ok()?;
            Some(group)
        })
    }

    /// Returns the file that holds the bytes that the group has taken, cached files included.
    fn usage(&self) -> PathBuf {
        let files = ["memory.usage_in_bytes", "memory.current"].map(|file| self.0.join(file));
        files.into_iter().find(|file| file.is_file()).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its last process may not be gone yet.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
fn a_run_in_a_control_group_that_is_full_of_cached_files_goes_on_as_on_an_idle_machine() {
    const LIMIT: u64 = 1_000_000_000;
    let Some(group) = Group::new(LIMIT) else {
        println!("skipped: no control group can be made here");
        return;
    };
    // On a disk: the pages of a file in memory are no cache.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (image, big) = (folder.path().join("in.png"), folder.path().join("big"));
    RgbImage::new(64, 64).save(&image).unwrap();
    // A sparse file, of which pages are cached all the same.
    File::create(&big).unwrap().set_len(3 * LIMIT).unwrap();
    let run = |shell: &str| {
        let edit = program("edit");
        let mut command = Command::new("sh");
        command.args(["-c", shell]).arg(edit.get_program());
        command.args([
            "--device", "cpu", "--steps", "1", "--seed", "1", "--prompt", "red", "--memory",
        ]);
        command
            .arg("--model")
            .arg(model(Layout::Diffusers))
            .arg("--image")
            .arg(&image);
        command.arg("--out").arg(folder.path().join("out.png"));
        let (code, out, err) = told(&command.output().unwrap());
        assert_eq!(code, Some(0), "{out}{err}");
        let placement = out
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(_, rest)| rest.contains("while")));
        (
            placement.unwrap().0.to_owned(),
            fs::read(folder.path().join("out.png")).unwrap(),
        )
    };
    let idle = run("exec \"$0\" \"$@\"");
    assert_eq!(idle.0, "resident");
    let taken = folder.path().join("taken");
    let within = format!(
        "echo $$ > {}/cgroup.procs && cat {} > /dev/null && cat {} > {} && exec \"$0\" \"$@\"",
        group.0.display(),
        big.display(),
        group.usage().display(),
        taken.display()
    );
    for _ in 0..2 {
        let filled = run(&within);
        let taken: u64 = fs::read_to_string(&taken).unwrap().trim().parse().unwrap();
        println!("{} of {} MB taken; {}", taken / MB, LIMIT / MB, filled.0);
        if taken < LIMIT / 2 {
            println!("skipped: reading a file here fills no cache");
            return;
        }
        assert!(idle == filled, "{} {}", idle.0, filled.0);
    }
}
