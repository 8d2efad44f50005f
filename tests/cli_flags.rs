//! Flags of the example programs that exclude each other, need each other, or have no effect.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::desk::{Desk, diffusers, small};
use common::{program, told};
use image::RgbImage;
use kontext::Tensor;
use kontext::crates::kontext_formats::save;

#[test]
fn flags_that_exclude_or_need_each_other_are_refused() {
    let desk = Desk::new();
    for (name, args, words) in [
        // A value for something that is not there.
        ("generate", &["--lora-scale", "0.5"][..], "--lora <FILE>"),
        ("generate", &["--lora-strength", "0.5"], "--lora <FILE>"),
        ("generate", &["--fuse-loras"], "--lora <FILE>"),
        ("generate", &["--prompt-2", "a"], "--prompt <TEXT>"),
        (
            "generate",
            &["--preview-method", "tiny"],
            "--preview <FILE>|--preview-terminal",
        ),
        (
            "generate",
            &["--preview-every", "1"],
            "--preview <FILE>|--preview-terminal",
        ),
        (
            "generate",
            &["--preview-decoder", "a"],
            "--preview <FILE>|--preview-terminal",
        ),
        ("previews", &["--photos", "a"], "--vae <FILE>"),
        (
            "previews",
            &[],
            "nothing to do: give --vae and --photos, --time or --strip",
        ),
        (
            "generate",
            &["--lora", "a", "--lora-scale", "1", "--lora-scale", "2"],
            "--lora-scale is given 2 times, and --lora 1 times",
        ),
        (
            "vae_table",
            &["--images", "a", "--vae", "a=b", "--strip-side", "9"],
            "--strip <FILE>",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "a", "--thumbnails", "9"],
            "--page",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "a", "--heads", "h"],
            "--embedder",
        ),
        (
            "vae_table",
            &[
                "--images",
                "a",
                "--vae",
                "a=b",
                "--strip",
                "s.png",
                "--strip-images",
                "0",
            ],
            "expected a whole number of at least 1",
        ),
        ("evaluate", &["--lora-scale", "0.5"], "--lora <FILE>"),
        ("evaluate", &["--allow-unmatched", "*"], "--lora <FILE>"),
        ("evaluate", &["--allow-no-effect"], "--lora <FILE>"),
        ("session", &["--lora", "a"], "unexpected argument '--lora'"),
        // A model that is made is not read.
        ("generate", &["--full-size", "--model", "a"], "cannot be used with"),
        (
            "generate",
            &["--full-size", "--quantize", "q8_0"],
            "cannot be used with",
        ),
        (
            "generate",
            &["--full-size", "--quantize-t5", "q8_0"],
            "cannot be used with",
        ),
        (
            "generate",
            &["--full-size", "--fp8-products", "always"],
            "cannot be used with",
        ),
        (
            "generate",
            &["--full-size", "--placement", "staged"],
            "cannot be used with",
        ),
        ("generate", &["--full-size", "--memory"], "cannot be used with"),
        (
            "generate",
            &["--full-size", "--fuse-loras", "--lora", "a"],
            "cannot be used with",
        ),
        (
            "generate",
            &["--guidance", "3", "--guidance-schedule", "4,2"],
            "cannot be used with",
        ),
        (
            "generate",
            &["--guidance-schedule", "4*0"],
            "expected values with numbers of steps, as in 3.5*4,2.5*24",
        ),
        ("edit", &["--ground", "white"], "expected six hexadecimal digits"),
        ("generate", &["--keep-alpha"], "unexpected argument '--keep-alpha'"),
        // An empty path, as of a shell variable that is not set.
        ("generate", &["--out="], "a value is required for '--out <FILE>'"),
        ("session", &["--model="], "a value is required for '--model <DIR>'"),
        ("drift", &["--plot", ""], "a value is required for '--plot <FILE>'"),
        // A step cache is read with its parameters.
        (
            "generate",
            &["--step-cache", "fast"],
            "expected off, magcache, first-block, teacache or taylor",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "b", "--step-cache", "magcache:interval=3"],
            "a parameter of magcache as NAME=NUMBER: threshold, most_skips, start",
        ),
        (
            "evaluate",
            &["--step-cache", "taylor:interval=0"],
            "invalid interval: expected a number from 1 to 1000, got 0",
        ),
        // Flags of another program or mode.
        ("generate", &["--compare", "a.png"], "unexpected argument '--compare'"),
        ("session", &["--load", "a", "--image", "b"], "cannot be used with"),
        ("inspect", &["a", "--model", "b"], "cannot be used with"),
        ("drift", &["--maps-only", "--plot", "a.svg"], "cannot be used with"),
        ("drift", &["--maps-only", "--markdown", "a.md"], "cannot be used with"),
        ("drift", &["--maps-only", "--turns", "3"], "cannot be used with"),
        ("finetune", &["--recipe", "a", "--rank", "3"], "cannot be used with"),
        ("finetune", &["--recipe", "a", "--data", "b"], "cannot be used with"),
        (
            "finetune",
            &["--method", "full", "--rank", "3"],
            "--rank has no effect with --method full",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--check", "--steps", "3"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--check", "--step-cache", "magcache"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "b", "--merge", "c", "--shard", "0/2"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "b", "--page", "c", "--lora", "d"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--check", "--device", "cpu"],
            "'--check' cannot be used with '--device <DEVICE>'",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--check", "--vae", "b"],
            "'--check' cannot be used with '--vae <PATH>'",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "b", "--merge", "c", "--t5-tokenizer", "d"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &[
                "--bench",
                "a",
                "--out",
                "b",
                "--page",
                "c",
                "--allow-no-effect",
                "--lora",
                "d",
            ],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--votes", "a", "--placement", "staged"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--votes", "a", "--embedder", "e"],
            "cannot be used with",
        ),
        ("kontextbench", &["--votes", "a", "--bench", "b"], "cannot be used with"),
        ("kontextbench", &["--votes", "a", "--out", "b"], "cannot be used with"),
        ("kontextbench", &["--bench", "a", "--score", "b"], "--judge <COMMAND>"),
        (
            "kontextbench",
            &["--bench", "a", "--out", "b", "--judge", "j"],
            "<--score <DIR>|--compare <DIR> <DIR>>",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--out", "b", "--judge-name", "j"],
            "--judge <COMMAND>",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--score", "b", "--judge", "j", "--both-orders"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--score", "b", "--judge", "j", "--compare", "c", "d"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--score", "b", "--judge", "j", "--out", "c"],
            "cannot be used with",
        ),
        (
            "kontextbench",
            &["--bench", "a", "--score", "b", "--judge", "j", "--steps", "3"],
            "cannot be used with",
        ),
        ("drift", &["--maps-only", "--identity", "a"], "cannot be used with"),
    ] {
        desk.bad(name, args, words);
    }
    std::fs::create_dir(desk.path("ink")).unwrap();
    std::fs::write(desk.path("lora.safetensors"), "").unwrap();
    let factors = ["A", "B"].map(|factor| {
        let name = format!("transformer.transformer_blocks.0.attn.to_q.lora_{factor}.weight");
        (name, Tensor::from_slice(&[1.0_f32]).reshape([1, 1]))
    });
    save(desk.path("ink/pytorch_lora_weights.safetensors"), &factors, None).unwrap();
    for (path, kind) in [("lora.safetensors", "file"), ("ink", "LoRA")] {
        for flags in [&["--plan"][..], &["--vae", "a"], &["--t5-tokenizer", "a"]] {
            let words = format!("{} takes the folder of a model, got the {kind} {path}", flags[0]);
            desk.bad("inspect", &[&[path], flags].concat(), &words);
        }
    }
}

#[test]
fn each_flag_of_a_run_is_refused_by_another_mode_of_kontextbench() {
    let desk = Desk::new();
    let (help, _) = desk.good("kontextbench", &["--help"]);
    let modes = [
        "--bench",
        "--out",
        "--check",
        "--merge",
        "--page",
        "--votes",
        "--score",
        "--compare",
        "--judge",
        "--judge-name",
        "--both-orders",
        "--thumbnails",
        "--limit",
        "--seed",
        "--help",
    ];
    let flags = help.lines().map(str::trim_start).filter(|line| line.starts_with("--"));
    let mut count = 0;
    for line in flags {
        let mut words = line.split([' ', ',']);
        let flag = words.next().unwrap();
        if modes.contains(&flag) {
            continue;
        }
        let value = match flag {
            "--dtype" | "--compute" => "f32",
            "--placement" => "staged",
            "--attention" => "math",
            "--quantize" | "--quantize-t5" => "q8_0",
            "--fp8-products" => "always",
            "--shard" => "0/2",
            "--step-cache" => "magcache",
            "--reference-reuse" => "references",
            "--sampler" => "heun",
            _ => "1",
        };
        let value = words.next().filter(|word| word.starts_with('<')).map(|_| value);
        // The modes share one list.
        let args: Vec<&str> = ["--bench", "a", "--check", flag].into_iter().chain(value).collect();
        desk.bad("kontextbench", &args, "cannot be used with");
        count += 1;
    }
    assert!(count > 20, "{help}");
}

#[test]
fn a_path_after_an_equals_sign_may_begin_with_the_home_folder() {
    let desk = Desk::new();
    let model = diffusers();
    let run = |name: &str, args: &[&str]| {
        let mut command = program(name);
        command
            .args(args)
            .current_dir(desk.0.path())
            .env("HOME", desk.path("home"));
        told(&command.output().unwrap())
    };
    let home = desk.path("home").display().to_string();
    for (name, args, path) in [
        ("generate", &["--out=~/none/a.png"][..], "/none"),
        ("evaluate", &["--data", "~/none", "--csv=~/none/a.csv"], "/none"),
        ("inspect", &["~/model"], "/model"),
        ("session", &["--image=~/a.png"], "/a.png"),
        ("vae_table", &["--images", "a", "--vae", "A=~/ae"], "/ae"),
    ] {
        let (code, _, err) = run(name, args);
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&format!("{home}{path}")), "{name}: {err}");
    }
    std::fs::create_dir(desk.path("home")).unwrap();
    let (code, out, err) = run(
        "generate",
        &small(&model, &["--out=~/a.png", "--prompt=~/b", "--seed", "1"]),
    );
    assert_eq!(code, Some(0), "{out}{err}");
    let png = std::fs::read(desk.path("home/a.png")).unwrap();
    // A text stays as it is.
    assert!(png.windows(4).any(|window| window == b"\0~/b"));
}

#[test]
fn a_flag_without_effect_is_noted_by_edit_and_generate() {
    let desk = Desk::new();
    let model = diffusers();
    RgbImage::new(64, 64).save(desk.path("in.png")).unwrap();
    let sized = ["--width", "64", "--height", "64"];
    for (more, words) in [
        (
            &["--negative-prompt", "red"][..],
            "the negative prompt has no effect with true_cfg 1;",
        ),
        (
            &["--negative-prompt-2", "red", "--true-cfg", "0.5"],
            "the negative prompt has no effect with true_cfg 0.5;",
        ),
        (&["--true-cfg", "-1"], "true_cfg -1 has no effect;"),
        (
            &["--max-area", "4096"],
            "max_area 4096 has no effect next to width or height;",
        ),
        (
            &["--references", "index"],
            "references Index has no effect with so few images;",
        ),
        (&["--native-size"], "native_size has no effect,"),
    ] {
        for name in ["edit", "generate"] {
            let mut args = vec!["--model", &model, "--device", "cpu", "--steps", "1"];
            args.extend(sized.iter().chain(more));
            if name == "edit" {
                args.extend(["--image", "in.png"]);
            }
            let (_, err) = desk.good(name, &args);
            let count = err
                .lines()
                .filter(|line| line.starts_with(&format!("warning: {words}")))
                .count();
            assert_eq!(count, 1, "{name} {more:?}\n{err}");
        }
    }
    // The shipped model embeds no guidance.
    let (_, err) = desk.good("generate", &["--device", "cpu", "--steps", "1", "--guidance", "7"]);
    assert!(
        err.contains("warning: guidance 7 has no effect, because this model embeds none;"),
        "{err}"
    );
    for (flag, value) in [
        ("--dump", Some("d.safetensors")),
        ("--memory", None),
        ("--preview", Some("p.png")),
        ("--preview-terminal", None),
        ("--compare", Some("c.png")),
    ] {
        let name = if flag == "--compare" { "edit" } else { "generate" };
        let mut args = small(&model, &["--plan", flag]);
        args.extend(value);
        let (out, err) = desk.good(name, &args);
        assert!(out.contains("target: "), "{out}");
        assert_eq!(
            err,
            format!("warning: {flag} has no effect with --plan; leave one of them out\n")
        );
    }
    assert!(!desk.path("d.safetensors").exists() && !desk.path("c.png").exists());
}

#[test]
fn a_run_writes_its_newest_preview_and_the_same_image() {
    let desk = Desk::new();
    let model = diffusers();
    let run = |out: &str, more: &[&str]| {
        let (_, err) = desk.good(
            "generate",
            &small(&model, &[&["--seed", "3", "--out", out], more].concat()),
        );
        (std::fs::read(desk.path(out)).unwrap(), err)
    };
    let (plain, _) = run("plain.png", &[]);
    let (image, err) = run(
        "shown.png",
        &["--preview", "p.png", "--preview-terminal", "--preview-every", "0"],
    );
    assert_eq!(image, plain);
    assert!(
        err.contains("warning: no preview: standard error is no terminal;"),
        "{err}"
    );
    let result = kontext::open_image(desk.path("shown.png")).unwrap();
    assert_eq!(
        kontext::open_image(desk.path("p.png")).unwrap().dimensions(),
        result.dimensions()
    );
    desk.bad(
        "generate",
        &small(&model, &["--preview", "p.gif"]),
        "a name that ends in .png, .jpg or .webp",
    );
    let same = ["--out", "p.png", "--preview", "p.png"];
    desk.bad(
        "generate",
        &small(&model, &same),
        "--out and --preview would write one file",
    );
}

#[test]
fn a_text_may_begin_with_a_dash() {
    let desk = Desk::new();
    let model = diffusers();
    RgbImage::new(64, 64).save(desk.path("in.png")).unwrap();
    let texts = [
        "--prompt",
        "-5 degrees, make it winter",
        "--prompt-2",
        "- snow",
        "--negative-prompt",
        "-",
        "--negative-prompt-2",
        "--no people",
        "--true-cfg",
        "2",
    ];
    for (name, image) in [("generate", &[][..]), ("edit", &["--image", "in.png"])] {
        let (out, _) = desk.good(name, &small(&model, &[&texts[..], image].concat()));
        assert!(out.starts_with("wrote "), "{out}");
    }
    // The PNG carries it.
    let png = std::fs::read(desk.path("edit.png")).unwrap();
    let prompt = b"-5 degrees, make it winter";
    assert!(png.windows(prompt.len()).any(|window| window == prompt));
    // A forgotten text is not the flag after it.
    for flag in ["--prompt", "--negative-prompt"] {
        desk.bad(
            "generate",
            &[flag, "--plan"],
            "expected a text, and this looks like a flag",
        );
    }
}

#[test]
fn messages_are_short_and_printable() {
    let desk = Desk::new();
    let model = diffusers();
    let control = "a\u{1b}[31m\u{7}.png";
    let sigmas = "9".repeat(309);
    for args in [
        &["--guidance", &sigmas][..],
        &["--out", "a\u{1b}[2J/b.png"],
        &["--lora", control],
        &["--device", &"x".repeat(10_000)],
        &["--prompt", &"\u{1b}".repeat(3000), "--out", "a.bmp"],
    ] {
        let (code, _, err) = told(&desk.run("generate", &small(&model, args)));
        assert_eq!(code, Some(1), "{err}");
        assert!(err.chars().all(|c| c == '\n' || !c.is_control()), "{err:?}");
        assert!(err.len() < 2100, "{err}");
    }
    let (out, err) = desk.good(
        "generate",
        &small(&model, &["--out", control, "--prompt", "ends\u{1b}\u{0b}"]),
    );
    assert!(out.starts_with("wrote a\\u{1b}[31m\\u{7}.png ("), "{out:?}");
    assert!(err.chars().all(|c| c == '\n' || !c.is_control()), "{err:?}");
}

#[test]
fn minutes_that_no_clock_counts_are_refused_and_do_not_panic() {
    let desk = Desk::new();
    for minutes in ["-1", "nan", "1e300"] {
        for (name, more) in [
            ("finetune", &["--data", "none"][..]),
            ("train_autoencoder", &["--data", "none", "--out", "o"]),
        ] {
            let args = [&["--minutes", minutes], more].concat();
            desk.bad(
                name,
                &args,
                "invalid --minutes: expected a number from 0 to 1000000, got ",
            );
        }
    }
}
