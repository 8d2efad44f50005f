//! The training programs: asked to end while they train, and recipes with fields of no effect.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::desk::Desk;
use common::{hang_up, program, told};
use kontext::image::{Rgb, RgbImage};
use kontext::{Layout, ModelDefaults, Weights, random_model};
use serde_json::json;

/// A folder with images, and their pairs in `data`.
fn desk() -> Desk {
    let desk = Desk::new();
    std::fs::create_dir(desk.path("data")).unwrap();
    let mut lines = String::new();
    for n in 0..4_u8 {
        let name = format!("{n}.png");
        let image = RgbImage::from_fn(32, 32, |x, y| Rgb([40 * n, 8 * x as u8, 8 * y as u8]));
        image.save(desk.path("data").join(&name)).unwrap();
        let split = if n == 0 { "test" } else { "train" };
        let line = json!({"source": name, "target": name, "instruction": "make it red", "split": split});
        lines.push_str(&format!("{line}\n"));
    }
    std::fs::write(desk.path("data/metadata.jsonl"), lines).unwrap();
    desk
}

/// The steps of a state, once there is one.
fn steps(state: &Path) -> Option<u64> {
    let state = state.is_file().then(|| Weights::open(state).unwrap())?;
    Some(state.store().metadata()["step"].parse().unwrap())
}

/// Starts a training, sends it a signal once it has saved a state of more than `before` steps, and returns its exit code
/// and stderr.
fn signalled(
    desk: &Desk,
    name: &str,
    args: &[&str],
    (state, before): (&Path, u64),
    signal: &str,
) -> (Option<i32>, String) {
    let mut child = start(program(name).args(args), desk);
    wait_for(&mut child, state, before);
    send(&child, signal);
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    (code, err)
}

fn start(command: &mut Command, desk: &Desk) -> Child {
    command
        .current_dir(desk.0.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits for a state of more than `before` steps.
fn wait_for(child: &mut Child, state: &Path, before: u64) {
    let begin = Instant::now();
    while steps(state).is_none_or(|now| now <= before) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it had saved");
        assert!(begin.elapsed() < Duration::from_secs(300), "it has not saved");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn send(child: &Child, signal: &str) {
    let kill = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
}

/// Checks that a program stopped at the step of its state and said so; returns the step.
fn stopped((code, err): (Option<i32>, String), state: &Path) -> u64 {
    assert_eq!(code, Some(0), "{err}");
    let step = steps(state).unwrap();
    let words = format!("stopped after step {step} of 100000; the state is saved, run the same command to go on");
    assert!(err.lines().any(|line| line.ends_with(&words)), "{words}: {err}");
    step
}

/// Recipe of an autoencoder that saves each of many steps.
const ENDLESS: &str = "channels = [8, 8, 8, 8]\ngroups = 4\nbatch = 1\ncrop = 16\nsteps = 100000\nsave = 1\n";

// The system tells only Linux programs which signals they ignore.
#[cfg(target_os = "linux")]
#[test]
fn a_training_that_was_started_with_nohup_goes_on_after_its_terminal_is_closed() {
    let desk = desk();
    std::fs::write(desk.path("recipe.toml"), ENDLESS).unwrap();
    let state = desk.path("run/autoencoder.safetensors");
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    command.arg(program("train_autoencoder").get_program());
    command.env("OMP_NUM_THREADS", "1").env("RAYON_NUM_THREADS", "1");
    let mut child = start(
        command.args(["--data", "data", "--out", "run", "--recipe", "recipe.toml"]),
        &desk,
    );
    wait_for(&mut child, &state, 0);
    send(&child, "-HUP");
    // A handler would end it at the next step.
    let step = steps(&state).unwrap();
    wait_for(&mut child, &state, step + 3);
    send(&child, "-TERM");
    let (code, _, err) = told(&child.wait_with_output().unwrap());
    assert!(stopped((code, err), &state) > step + 3);
}

#[cfg(unix)]
#[test]
fn an_autoencoder_that_is_asked_to_end_saves_its_state_and_goes_on() {
    let desk = desk();
    std::fs::write(desk.path("recipe.toml"), ENDLESS).unwrap();
    let args = ["--data", "data", "--out", "run", "--recipe", "recipe.toml"];
    let state = desk.path("run/autoencoder.safetensors");
    let mut before = 0;
    for signal in ["-TERM", hang_up(), "-INT"] {
        let ended = signalled(&desk, "train_autoencoder", &args, (&state, before), signal);
        before = stopped(ended, &state);
    }
}

#[cfg(unix)]
#[test]
fn a_fine_tuning_that_is_asked_to_end_saves_its_state() {
    for signal in ["-TERM", hang_up()] {
        let desk = desk();
        random_model(desk.path("model"), 7, Layout::Diffusers).unwrap();
        let defaults = ModelDefaults {
            sizes: Some(vec![[32, 32]]),
            steps: Some(1),
            max_sequence_length: Some(8),
            ..ModelDefaults::default()
        };
        defaults.save(desk.path("model")).unwrap();
        let recipe = "model = 'model'\nout = 'run'\nsteps = 100000\ndevice = 'cpu'\n[method]\nkind = 'lora'\nrank = 2\n\
                      [data]\nfolder = 'data'\nbatch = 1\n[every]\nsave = 1\nvalidate = 0\nsample = 0\n";
        std::fs::write(desk.path("recipe.toml"), recipe).unwrap();
        let state = desk.path("run/state.safetensors");
        let ended = signalled(&desk, "finetune", &["--recipe", "recipe.toml"], (&state, 0), signal);
        let step = stopped(ended, &state);
        let csv = std::fs::read_to_string(desk.path("run/curve.csv")).unwrap();
        assert_eq!(csv.lines().count() as u64 - 1, step);
        assert!(desk.path("run/lora.safetensors").is_file());
    }
}

/// A recipe of all stages, as short as possible, with `more` at the end of `[training]`.
fn stages(more: &str) -> String {
    format!(
        "shift = 2.0\n[autoencoder]\nchannels = [8, 8, 8, 8]\ngroups = 4\nlatent_channels = 4\nbatch = 1\ncrop = 16\n\
         steps = 1\n[text]\nwidth = 32\nlayers = 1\nbatch = 1\nsteps = 1\n[transformer]\nheads = 2\nhead_dim = 16\n\
         axes_dim = [4, 6, 6]\ndouble_blocks = 1\nsingle_blocks = 1\n[defaults]\nsizes = [[32, 32]]\nsteps = 1\n\
         max_sequence_length = 8\n[training]\nsteps = 1\ndevice = 'cpu'\nevery = {{ save = 0, validate = 0, sample = 0 }}\n\
         {more}\n"
    )
}

#[test]
fn a_recipe_of_all_stages_has_no_field_without_effect_and_a_changed_stage_is_named() {
    let desk = desk();
    let args = ["--recipe", "recipe.toml", "--data", "data", "--out", "out"];
    let write = |text: String| std::fs::write(desk.path("recipe.toml"), text).unwrap();
    for (more, words) in [
        (
            "model = 'x'",
            "training.model has no effect: --out and --data set it; leave it out",
        ),
        ("out = 'x'", "training.out has no effect"),
        ("data.folder = 'x'", "training.data.folder has no effect"),
        ("method.kind = 'lora'", "training.method has no effect"),
        ("seeed = 1", "unknown field `seeed`"),
        ("accept_changes = ['rat']", "`rat`, which names none"),
    ] {
        write(stages(more));
        desk.bad("train_small", &args, words);
    }
    write(stages("").replace("[defaults]\n", "[defaults]\nguidance = 2.0\n"));
    desk.bad("train_small", &args, "defaults.guidance has no effect");
    write(stages("").replace("axes_dim = [4, 6, 6]", "axes_dim = [4, 6, 8]"));
    desk.bad("train_small", &args, "in [transformer]: ");

    write(stages("data.weights = { nothing = 2.0 }"));
    let (out, err) = desk.good("train_small", &args);
    assert!(out.contains("wrote out/model"), "{out}");
    for words in [
        "warning: rate.warmup is 100 and the run has 1 steps: it ends with the warm-up",
        "warning: rate.warmup is 50 and the run has 1 steps",
        "warning: the entry `nothing` of data.weights has no effect",
    ] {
        assert!(err.contains(words), "{err}");
    }
    write(stages("").replace("[text]\n", "[text]\nt5_tokens = 21\n"));
    desk.bad(
        "train_small",
        &args,
        "the stage `text` was run with another recipe, out/text.json: t5_tokens was 20 and is 21; set it back",
    );
}
