//! The files that the example programs write, and what a reader that goes away costs.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::process::{Child, Stdio};
#[cfg(unix)]
use std::time::Duration;

use common::desk::{Desk, diffusers, small};
use common::{program, told};
use image::{Rgb, RgbImage};

/// Flags of a batch of three on a small model.
fn batch<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    small(
        model,
        &[&["--batch", "3", "--seed", "1", "--out", "b.png"], more].concat(),
    )
}

const BATCH: [&str; 3] = ["b-1.png", "b-2.png", "b.png"];

#[test]
fn a_reader_of_stdout_that_goes_away_costs_no_image() {
    for full in [false, true] {
        let desk = Desk::new();
        let model = diffusers();
        let mut command = program("generate");
        command
            .args(batch(&model, &["--dump", "d.safetensors"]))
            .current_dir(desk.0.path());
        let output = command.stdout(gone(full)).stderr(Stdio::piped()).output().unwrap();
        let (code, _, err) = told(&output);
        assert_eq!(code, Some(0), "{err}");
        assert!(!err.contains("panicked") && !err.contains("error:"), "{err}");
        let files: Vec<String> = desk.files().into_iter().collect();
        assert_eq!(files, [&BATCH[..], &["d.safetensors"]].concat());
    }
}

#[test]
fn a_reader_of_stderr_that_goes_away_costs_no_image() {
    for full in [false, true] {
        let desk = Desk::new();
        let model = diffusers();
        // Notes and warnings are written before the run.
        let flags = batch(&model, &["--negative-prompt", "red"]);
        let mut command = program("generate");
        command.args(flags).current_dir(desk.0.path());
        let output = command.stderr(gone(full)).stdout(Stdio::piped()).output().unwrap();
        assert_eq!(told(&output).0, Some(0));
        assert_eq!(desk.files().into_iter().collect::<Vec<_>>(), BATCH);
    }
}

#[test]
fn no_program_panics_without_readers() {
    let model = diffusers();
    for (name, args) in [
        ("doctor", vec![]),
        ("inspect", vec![model.as_str()]),
        ("inspect", vec!["none"]),
        ("generate", vec!["--plan"]),
        ("edit", vec!["--image", "none.png"]),
        ("session", vec!["--device", "cpu"]),
        ("quantize", vec!["--model", &model, "--to", "q8_0", "--out", "q.gguf"]),
        ("finetune", vec!["--minutes", "-1"]),
        ("evaluate", vec!["--csv", "no/a.csv"]),
        ("kontextbench", vec!["--bench", "none", "--check"]),
    ] {
        let desk = Desk::new();
        let mut command = program(name);
        command.args(&args).current_dir(desk.0.path()).stdin(Stdio::null());
        let output = command.stdout(gone(false)).stderr(gone(false)).output().unwrap();
        // A panic exits with 101, a signal without a code.
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "{name} {args:?}: {}",
            output.status
        );
    }
}

/// Returns an end of a pipe without a reader, or a full device.
fn gone(full: bool) -> Stdio {
    if full && cfg!(target_os = "linux") {
        return std::fs::File::create("/dev/full").unwrap().into();
    }
    let (_, writer) = std::io::pipe().unwrap();
    writer.into()
}

#[test]
fn results_are_written_to_files_also_if_the_reader_of_the_table_is_gone() {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("album")).unwrap();
    RgbImage::from_pixel(32, 32, Rgb([9, 99, 199]))
        .save(desk.path("album/a.png"))
        .unwrap();
    let vae = format!("emoji={}/models/kontext-emoji/vae", env!("CARGO_MANIFEST_DIR"));
    let mut command = program("vae_table");
    command
        .args([
            "--images", "album", "--vae", &vae, "--device", "cpu", "--csv", "t.csv", "--strip", "s.png",
        ])
        .current_dir(desk.0.path());
    let output = command.stdout(gone(false)).stderr(Stdio::piped()).output().unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("error: cannot write to standard output: "), "{err}");
    assert!(desk.path("t.csv").is_file() && desk.path("s.png").is_file());
}

#[test]
fn every_name_is_checked_before_the_model_is_loaded() {
    let desk = Desk::new();
    let model = diffusers();
    std::fs::create_dir(desk.path("k-1.png")).unwrap();
    std::fs::write(desk.path("file"), "").unwrap();
    RgbImage::new(8, 8).save(desk.path("in.png")).unwrap();
    let long = format!("{}.png", "a".repeat(252));
    let batched = format!("{}.png", "a".repeat(251));
    for (more, words) in [
        (&["--out", "nowhere.png/"][..], "the path ends in a slash"),
        (&["--out", &long], "the name is too long"),
        (&["--out", &batched, "--batch", "2"], "the name is too long"),
        (
            &["--out", "k.png", "--batch", "2"],
            "cannot access k-1.png: it is a folder",
        ),
        (&["--out", "file/a.png"], "a part of the path is a file"),
        (&["--dump", "d/"], "the path ends in a slash"),
        (&["--dump", "."], "ends in a slash or a dot"),
        (&["--dump", "/dev/null"], "it is a device"),
        (&["--compare", "c.gif"], "a name that ends in .png, .jpg or .webp"),
        (
            &["--compare", "no/c.png"],
            "cannot access no: there is no such file or folder",
        ),
    ] {
        let name = if more.contains(&"--compare") {
            "edit"
        } else {
            "generate"
        };
        let output = desk.run(name, &small(&model, &[more, &["--steps", "1000"]].concat()));
        let (code, _, err) = told(&output);
        assert_eq!(code, Some(1), "{more:?}\n{err}");
        assert!(
            err.starts_with("error: ") && err.contains(words) && err.lines().count() == 1,
            "{more:?}\n{err}"
        );
    }
    // A row of images that its format cannot hold.
    RgbImage::new(16_000, 8).save(desk.path("wide.png")).unwrap();
    let wide = ["--image", "wide.png", "--compare", "c.webp", "--steps", "1000"];
    desk.bad("edit", &small(&model, &wide), "at most 16383 pixels on a side for WebP");
    for (name, args) in [
        ("reconstruct", vec!["--vae", "none", "--out", "a.png/"]),
        (
            "quantize",
            vec!["--model", &model, "--to", "fp8", "--out", "no/a.safetensors"],
        ),
        ("evaluate", vec!["--csv", "no/a.csv"]),
        ("drift", vec!["--plot", "a.svg/"]),
        (
            "vae_table",
            vec!["--images", "none", "--vae", "a=none", "--csv", "a.csv/"],
        ),
    ] {
        desk.bad(name, &args, "cannot access ");
    }
}

#[test]
fn two_outputs_of_one_file_are_refused() {
    let desk = Desk::new();
    let model = diffusers();
    std::fs::create_dir(desk.path("deep")).unwrap();
    for (more, flags) in [
        (
            &["--out", "a.png", "--dump", "./a.png"][..],
            "--out and --dump would write one file, ./a.png",
        ),
        (&["--out", "a.png", "--dump", "deep/../a.png"], "--out and --dump"),
        (
            &["--out", "a.png", "--batch", "3", "--dump", "a-2.png"],
            "--dump and --batch",
        ),
    ] {
        desk.bad("generate", &small(&model, more), flags);
    }
    for compare in ["one.png", "./one.png"] {
        let args = ["--out", "one.png", "--compare", compare];
        desk.bad(
            "edit",
            &small(&model, &args),
            "--out and --compare would write one file",
        );
    }
    let table = ["--images", "a", "--vae", "a=b", "--csv", "t", "--markdown", "t"];
    desk.bad("vae_table", &table, "--csv and --markdown would write one file, t");
    desk.bad(
        "drift",
        &["--plot", "t", "--markdown", "t"],
        "--markdown and --plot would write one file, t",
    );
}

#[test]
fn numbered_images_and_inputs_are_only_replaced_on_request() {
    let desk = Desk::new();
    let model = diffusers();
    std::fs::write(desk.path("b-1.png"), "mine").unwrap();
    let words = "--batch would replace b-1.png; choose another --out, or add --overwrite";
    desk.bad("generate", &batch(&model, &[]), words);
    desk.good("generate", &batch(&model, &["--overwrite"]));
    assert_ne!(std::fs::read(desk.path("b-1.png")).unwrap(), b"mine");

    let edit = ["--image", "b.png", "--out", "./b.png", "--steps", "1"];
    let words = "--out would replace ./b.png, which the run reads (--image); choose another name, or add --overwrite";
    desk.bad("edit", &small(&model, &edit), words);
    desk.good("edit", &small(&model, &[&edit[..], &["--overwrite"]].concat()));
    // A file that the flag names, and that is no input, is replaced.
    desk.good(
        "edit",
        &small(&model, &["--image", "b.png", "--out", "b-1.png", "--steps", "1"]),
    );

    let weights = format!("{model}/vae/diffusion_pytorch_model.safetensors");
    desk.bad(
        "generate",
        &small(&model, &["--dump", &weights]),
        "which the run reads (--model)",
    );
    let whole = format!("{model}/transformer/diffusion_pytorch_model.safetensors");
    let args = ["--model", &model, "--to", "fp8", "--out", &whole];
    desk.bad("quantize", &args, "which the run reads (--model); choose another name");
    let args = ["--vae", "none", "--image", "b.png", "--out", "b.png"];
    desk.bad(
        "reconstruct",
        &args,
        "--out would replace b.png, which the run reads (--image)",
    );
}

#[cfg(unix)]
#[test]
fn a_link_is_written_through_and_a_read_only_file_is_kept() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let desk = Desk::new();
    let model = diffusers();
    std::fs::create_dir(desk.path("album")).unwrap();
    symlink("album/a.png", desk.path("link.png")).unwrap();
    desk.good("generate", &small(&model, &["--out", "link.png"]));
    assert!(desk.path("link.png").is_symlink());
    kontext::open_image(desk.path("album/a.png")).unwrap();
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(desk.path("album/a.png"), permissions).unwrap();
    };
    mode(0o600);
    desk.good("generate", &small(&model, &["--out", "album/a.png"]));
    let now = desk.path("album/a.png").metadata().unwrap().permissions().mode();
    assert_eq!(now & 0o777, 0o600);
    mode(0o444);
    desk.bad(
        "generate",
        &small(&model, &["--out", "link.png"]),
        "cannot access link.png: permission denied",
    );
}

#[cfg(target_os = "linux")]
#[test]
fn the_images_of_a_batch_keep_a_name_that_is_not_utf_8() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let desk = Desk::new();
    let model = diffusers();
    let mut command = program("generate");
    command
        .args(small(&model, &["--batch", "2", "--steps", "1"]))
        .arg("--out");
    let output = command
        .arg(OsStr::from_bytes(b"caf\xe9.png"))
        .current_dir(desk.0.path())
        .output()
        .unwrap();
    assert_eq!(told(&output).0, Some(0));
    for name in [&b"caf\xe9.png"[..], b"caf\xe9-1.png"] {
        assert!(desk.0.path().join(OsStr::from_bytes(name)).is_file());
    }
}

#[test]
fn an_image_that_cannot_be_written_costs_no_other() {
    let model = diffusers();
    // The name is taken after the check, while the model samples. A faster machine gets more steps.
    for steps in ["40", "400", "4000", "40000"] {
        let desk = Desk::new();
        let mut command = program("generate");
        command
            .args(batch(&model, &["--width", "128", "--height", "128", "--steps", steps]))
            .current_dir(desk.0.path());
        let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        wait_for(&mut child, "T5 tokenizer:");
        if std::fs::create_dir(desk.path("b-1.png")).is_err() {
            child.wait_with_output().unwrap();
            continue;
        }
        let output = child.wait_with_output().unwrap();
        let (code, out, err) = told(&output);
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(
            err.contains("error: cannot write 1 of 3 images: cannot access b-1.png: it is a folder"),
            "{err}"
        );
        assert!(desk.path("b.png").is_file() && desk.path("b-2.png").is_file(), "{out}");
        return;
    }
    panic!("the images were written before the name was taken");
}

/// Reads stderr up to a line that starts with these words; the rest is left for `wait_with_output`.
fn wait_for(child: &mut Child, words: &str) {
    use std::io::Read;
    let mut text = String::new();
    let mut byte = [0];
    let stderr = child.stderr.as_mut().unwrap();
    while !text.lines().any(|line| line.starts_with(words)) || !text.ends_with('\n') {
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "{text}");
        text.push(char::from(byte[0]));
    }
}

/// Sends the signal of Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &Child) {
    let mut kill = std::process::Command::new("kill");
    // Fails if the program has ended.
    kill.args(["-INT", &child.id().to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

#[cfg(unix)]
#[test]
fn a_second_interrupt_ends_a_run_within_its_step() {
    let model = diffusers();
    // A step of seconds.
    let size = ["--width", "2560", "--height", "2560", "--steps", "50"];
    let flags = [
        &["--model", &model, "--device", "cpu", "--negative-prompt", "red"],
        &size[..],
    ]
    .concat();
    // The first interrupt may come at the end of a stage, which then cancels the run: another moment is tried.
    for moment in [0.5, 1.0, 2.0, 4.0, 8.0, 16.0] {
        let desk = Desk::new();
        let mut command = program("generate");
        command.args(&flags).current_dir(desk.0.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // A line of the run itself, which has its handler of Ctrl-C then.
        wait_for(&mut child, "warning: the negative prompt");
        std::thread::sleep(Duration::from_secs_f64(moment));
        // Two signals at once may be delivered as one.
        while child.try_wait().unwrap().is_none() {
            interrupt(&child);
            std::thread::sleep(Duration::from_millis(50));
        }
        let (code, _, err) = told(&child.wait_with_output().unwrap());
        assert!(desk.files().is_empty());
        if code == Some(1) && err.starts_with("error: cancelled after ") {
            continue;
        }
        assert_eq!((code, err.as_str()), (Some(130), ""));
        return;
    }
    panic!("each first interrupt came at the end of a stage");
}

#[cfg(unix)]
#[test]
fn an_interrupted_quantisation_leaves_no_file() {
    /// Attempts to interrupt it while its file is there and not yet complete.
    const ATTEMPTS: usize = 50;
    let model = format!("{}/models/kontext-emoji", env!("CARGO_MANIFEST_DIR"));
    for _ in 0..ATTEMPTS {
        let desk = Desk::new();
        // It yields to the test that waits for its file.
        let mut command = std::process::Command::new("nice");
        command
            .args(["-n", "19"])
            .arg(program("quantize").get_program())
            .args(["--model", &model, "--to", "q4_0", "--out", "q.gguf"])
            .env("OMP_NUM_THREADS", "1")
            .env("RAYON_NUM_THREADS", "1")
            .current_dir(desk.0.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        while desk.files().is_empty() && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        interrupt(&child);
        let (code, _, err) = told(&child.wait_with_output().unwrap());
        if code == Some(0) {
            continue;
        }
        assert!(
            code == Some(1) && err == "error: stopped; nothing was written\n",
            "{code:?}\n{err}"
        );
        assert!(desk.files().is_empty(), "{:?}", desk.files());
        return;
    }
    panic!("no attempt was in time");
}
