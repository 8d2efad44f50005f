//! The example programs as a user runs them: their output, files and exit codes.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use common::desk::{Desk, diffusers, small};
use common::{add, copy, model, program, rename, replace, told, truncate};
use image::{Rgb, RgbImage};
use kontext::{Layout, Weights};

fn fixture(name: &str) -> String {
    format!("{}/kontext-core/tests/pictures/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_program_tells_its_flags() {
    let desk = Desk::new();
    for (name, flag) in [
        ("edit", "--image"),
        ("generate", "--seed"),
        ("inspect", "DIR"),
        ("reconstruct", "--vae <PATH>"),
        ("evaluate", "--split"),
        ("kontextbench", "--shard"),
        ("emoji_bench", "--most"),
        ("finetune", "--rank"),
        ("train_small", "--minutes"),
        ("vae_table", "--vae <NAME=PATH>"),
        ("session", "--load"),
        ("drift", "--turns"),
    ] {
        let (out, err) = desk.good(name, &["--help"]);
        assert!(out.contains(flag) && err.is_empty(), "{out}{err}");
    }
}

#[test]
fn flags_that_are_wrong_are_told_in_one_line() {
    let desk = Desk::new();
    for (flag, name, value) in [
        ("--steps", "STEPS", "0"),
        ("--width", "WIDTH", "-5"),
        ("--height", "HEIGHT", "x"),
        ("--max-area", "PIXELS", "1.5"),
        ("--batch", "BATCH", "0"),
    ] {
        let words = format!("invalid value '{value}' for '{flag} <{name}>': expected a whole number of at least 1");
        desk.bad("generate", &[flag, value], &words);
    }
    desk.bad(
        "generate",
        &["--batch", "99999999999999999999999"],
        "expected a smaller number",
    );
    desk.bad(
        "generate",
        &["--seed", "-1"],
        "invalid value '-1' for '--seed <SEED>': expected a whole number from 0",
    );
    desk.bad(
        "generate",
        &["--sed", "1"],
        "unexpected argument '--sed' found; tip: a similar argument exists: '--seed'",
    );
    for flag in ["--lora-scale", "--lora-strength"] {
        desk.bad("generate", &[flag, "x"], "invalid value 'x' for '--lora-scale <X>'");
    }
    desk.bad("generate", &["--dtype", "int8"], "possible values: f32, bf16");
    desk.bad(
        "inspect",
        &[],
        "the following required arguments were not provided: <PATH>",
    );
    desk.bad(
        "reconstruct",
        &[],
        "the following required arguments were not provided: --vae <PATH>",
    );
}

#[test]
fn edit_alone_edits_a_image_with_the_model_of_this_repository() {
    let desk = Desk::new();
    let (out, _) = desk.good("edit", &["--device", "cpu", "--seed", "1"]);
    assert!(out.starts_with("wrote edit.png (128x128, seed 1)"), "{out}");
    let files = ["edit-compared.png", "edit.png"];
    assert_eq!(desk.files().into_iter().collect::<Vec<_>>(), files);
    // Source, result, ground truth.
    let compared = kontext::open_image(desk.path("edit-compared.png")).unwrap();
    assert_eq!(compared.dimensions(), (3 * 128 + 2 * 8, 128));
    let part = |n: u32| image::imageops::crop_imm(&compared, n * 136, 0, 128, 128).to_image();
    let distance = |a: &RgbImage, b: &RgbImage| kontext_bench::metrics::psnr(a, b).unwrap();
    // It is an edit: much closer to the ground truth than the source.
    assert!(distance(&part(1), &part(2)) > distance(&part(0), &part(2)) + 6.0);
}

#[test]
fn programs_of_a_few_lines_edit_in_turns_and_take_a_lora() {
    let desk = Desk::new();
    for name in ["hello_edit", "hello_session", "hello_lora"] {
        let (out, err) = desk.good(name, &[]);
        assert!(out.is_empty() && err.is_empty(), "{out}{err}");
    }
    let files = [
        "hello-edit.png",
        "hello-lora.png",
        "hello-lora.safetensors",
        "hello-session-1.png",
        "hello-session-2.png",
    ];
    assert_eq!(desk.files().into_iter().collect::<Vec<_>>(), files);
    let open = |name: &str| kontext::open_image(desk.path(name)).unwrap();
    // The same seed, image and instruction.
    assert_eq!(open("hello-edit.png"), open("hello-session-1.png"));
    assert_ne!(open("hello-session-1.png"), open("hello-session-2.png"));
    let lora = desk.path("hello-lora.safetensors").display().to_string();
    let flags = [
        "--device",
        "cpu",
        "--seed",
        "1",
        "--lora",
        &lora,
        "--lora-strength",
        "0.05",
    ];
    desk.good("generate", &flags);
    assert_eq!(open("generate.png"), open("hello-lora.png"));
    desk.good("generate", &[&flags[..6], &["--lora-scale", "0"]].concat());
    assert_ne!(open("generate.png"), open("hello-lora.png"));
}

/// Runs a session in which the user types these lines.
fn typed(desk: &Desk, args: &[&str], lines: &str) -> (String, String) {
    let mut command = program("session");
    command
        .args(["--device", "cpu"])
        .args(args)
        .current_dir(desk.0.path())
        .stdin(Stdio::piped());
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    run.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let (code, out, err) = told(&run.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{lines}\n{out}{err}");
    (out, err)
}

#[test]
fn a_session_writes_a_image_after_each_turn_and_goes_on_after_an_error() {
    let desk = Desk::new();
    let lines = "make it sepia\n:undo\n:undo\n\n:keep on\nmake the skin dark\n:history\n:nonsense\n:branch 7\n\
                 :save kept\n:load nowhere\n:redo\n:quit\nnot read any more\n";
    let (out, err) = typed(&desk, &["--seed", "1"], lines);
    for line in [
        "turn 0: 128x128 pixels",
        "turn 1: wrote session-1.png (seed 1)",
        "what a turn does not change stays as it was",
        "turn 2: wrote session-2.png (seed 1)",
        "  0: 128x128 pixels\n  1 from 0: make it sepia (seed 1)\n* 2 from 0: make the skin dark (seed 1)",
        "saved 2 turns in kept",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let errors: Vec<&str> = err.lines().filter(|line| line.starts_with("error: ")).collect();
    let words = [
        "nothing to undo",
        "no command is \":nonsense\"",
        "a number from 0 to 2, got 7",
        "nowhere",
        "to redo",
    ];
    assert_eq!(errors.len(), words.len(), "{err}");
    assert!(
        errors.iter().zip(words).all(|(error, words)| error.contains(words)),
        "{err}"
    );
    assert_eq!(
        desk.files().into_iter().collect::<Vec<_>>(),
        ["kept", "session-1.png", "session-2.png"]
    );
    // Another process continues from this one, with the same bytes.
    let more = "make it greyscale\n";
    typed(&desk, &["--load", "kept", "--out", "again.png"], more);
    typed(
        &desk,
        &["--seed", "1", "--out", "whole.png"],
        &format!(":keep on\nmake the skin dark\n{more}"),
    );
    let bytes = |name: &str| kontext::open_image(desk.path(name)).unwrap();
    assert_eq!(bytes("again-3.png"), bytes("whole-2.png"));
}

#[test]
fn a_session_takes_masks_and_further_references() {
    let desk = Desk::new();
    let mask = RgbImage::from_fn(128, 128, |x, _| Rgb([if x < 64 { 255 } else { 0 }; 3]));
    mask.save(desk.path("mask.png")).unwrap();
    let lines = ":keep mask mask.png\n:keep\nmake it sepia\n:keep off\n:reencode on\n:reference mask.png\n\
                 in the style of the second image\n:seed\n:seed x\n:branch 0\n:help\n";
    let (out, err) = typed(&desk, &["--seed", "1"], lines);
    assert!(out.contains("the next turn sees it") && out.contains("seeds are drawn") && out.contains(":reencode on"));
    assert!(
        err.contains("error: :keep wants on, off, or mask and a file") && err.contains("error: :seed wants a whole")
    );
    let source = kontext::open_image(format!("{}/examples/data/emoji-source.png", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let kept = kontext::open_image(desk.path("session-1.png")).unwrap();
    let same = |right: bool| {
        kept.enumerate_pixels()
            .filter(|(x, ..)| (*x >= 64) == right)
            .all(|(x, y, p)| p == source.get_pixel(x, y))
    };
    assert!(same(true) && !same(false));
    assert!(desk.path("session-2.png").is_file());
    desk.bad("session", &["--load", "nowhere"], "there is no such file");
}

#[test]
fn a_lora_that_is_none_is_refused() {
    let desk = Desk::new();
    let none = fixture("cmyk.jpg");
    desk.bad(
        "generate",
        &["--device", "cpu", "--lora", &none],
        "not a valid safetensors file",
    );
    desk.bad(
        "generate",
        &["--device", "cpu", "--lora", "none.safetensors"],
        "cannot access none.safetensors",
    );
}

#[test]
fn a_plan_is_printed_and_nothing_is_written() {
    let desk = Desk::new();
    let image = fixture("cmyk.jpg");
    let (out, _) = desk.good(
        "edit",
        &["--model", &diffusers(), "--device", "cpu", "--image", &image, "--plan"],
    );
    assert!(
        out.contains("reference 1: 24x16, stretched to 1248x832 by Lanczos, 52 rows x 78 columns"),
        "{out}"
    );
    assert!(out.contains("output:      24x16, resized from 1248x832"), "{out}");
    assert!(desk.files().is_empty());
}

#[test]
fn images_of_every_kind_are_edited() {
    let desk = Desk::new();
    RgbImage::from_pixel(20_000, 10, Rgb([1, 2, 3]))
        .save(desk.path("wide.png"))
        .unwrap();
    RgbImage::from_pixel(1, 1, Rgb([1, 2, 3]))
        .save(desk.path("dot.png"))
        .unwrap();
    image::ImageBuffer::<image::Luma<u16>, _>::from_fn(9, 7, |x, y| image::Luma([(x * y * 999) as u16]))
        .save(desk.path("grey16.png"))
        .unwrap();
    let (wide, dot, grey16) = (desk.path("wide.png"), desk.path("dot.png"), desk.path("grey16.png"));
    for (image, size) in [
        (wide.display().to_string(), "20000x10"),
        (dot.display().to_string(), "1x1"),
        (grey16.display().to_string(), "9x7"),
        (fixture("cmyk.jpg"), "24x16"),
        (fixture("palette_transparent.png"), "24x16"),
        // Stored in landscape, displayed in portrait.
        (fixture("turned6.jpg"), "16x24"),
    ] {
        let model = diffusers();
        let args = small(
            &model,
            &["--image", &image, "--prompt", "", "--seed", "1", "--steps", "1"],
        );
        let (out, _) = desk.good("edit", &args);
        assert!(out.starts_with(&format!("wrote edit.png ({size}, seed 1)")), "{out}");
    }
    assert_eq!(desk.files().len(), 4);
}

#[test]
fn a_batch_is_written_under_numbered_names() {
    let desk = Desk::new();
    let (out, _) = desk.good(
        "generate",
        &small(&diffusers(), &["--batch", "2", "--seed", "5", "--out", "a.jpg"]),
    );
    assert!(
        out.contains("wrote a.jpg (64x64, seed 5)\nwrote a-1.jpg (64x64, seed 6)"),
        "{out}"
    );
    assert_eq!(desk.files().into_iter().collect::<Vec<_>>(), ["a-1.jpg", "a.jpg"]);
}

#[test]
fn noise_that_was_dumped_gives_the_same_image_again() {
    let desk = Desk::new();
    let model = diffusers();
    desk.good(
        "generate",
        &small(&model, &["--seed", "3", "--dump", "dump.safetensors", "--out", "a.png"]),
    );
    desk.good(
        "generate",
        &small(
            &model,
            &["--seed", "4", "--noise", "dump.safetensors", "--out", "b.png"],
        ),
    );
    let open = |name: &str| kontext::open_image(desk.path(name)).unwrap();
    assert_eq!(open("a.png"), open("b.png"));
    let dump = Weights::open(desk.path("dump.safetensors")).unwrap();
    let names = [
        "final",
        "latents",
        "pooled_prompt_embeds",
        "prompt_embeds",
        "step_0",
        "step_1",
    ];
    assert_eq!(dump.names(), names);
    assert_eq!(dump.shape_of("latents").unwrap(), [1, 16, 64]);
    desk.bad(
        "generate",
        &small(&model, &["--noise", "a.png"]),
        "a.png: not a valid safetensors file",
    );
    let noise = ["--noise", "dump.safetensors", "--width", "32", "--height", "32"];
    desk.bad(
        "generate",
        &small(&model, &noise),
        "invalid shape of the noise: expected [1, 4, 64] (batch, target tokens, 4 * latent channels), got [1, 16, 64]",
    );
    rename(&desk.path("dump.safetensors"), "latents", "other");
    desk.bad(
        "generate",
        &small(&model, &["--noise", "dump.safetensors"]),
        "no tensor `latents`",
    );
}

#[test]
fn prompts_of_no_word_and_of_ten_thousand_are_taken() {
    let desk = Desk::new();
    let (_, err) = desk.good("generate", &small(&diffusers(), &["--prompt", ""]));
    assert!(!err.contains("does not see"), "{err}");
    let (_, err) = desk.good("generate", &small(&diffusers(), &["--prompt", &"word ".repeat(10_000)]));
    for encoder in ["T5", "CLIP"] {
        assert!(
            err.contains(&format!("{encoder} does not see the end of the prompt: “")),
            "{err}"
        );
    }
    assert!(err.len() < 2000, "{err}");
}

#[test]
fn prompts_of_their_own_reach_clip_and_t5() {
    let desk = Desk::new();
    let model = diffusers();
    let dump = |flags: &[&str]| {
        let more = [
            flags,
            &[
                "--true-cfg",
                "2",
                "--steps",
                "1",
                "--seed",
                "3",
                "--dump",
                "dump.safetensors",
            ],
        ]
        .concat();
        desk.good("generate", &small(&model, &more));
        Weights::open(desk.path("dump.safetensors")).unwrap()
    };
    let (cup, hat) = (dump(&["--prompt", "a cup"]), dump(&["--prompt", "a hat"]));
    let flags = [
        "--prompt-2",
        "a hat",
        "--negative-prompt",
        "a hat",
        "--negative-prompt-2",
        "a cup",
    ];
    let both = dump(&[&["--prompt", "a cup"], &flags[..]].concat());
    for (name, from, source) in [
        ("pooled_prompt_embeds", &cup, "pooled_prompt_embeds"),
        ("prompt_embeds", &hat, "prompt_embeds"),
        ("negative_pooled_prompt_embeds", &hat, "pooled_prompt_embeds"),
        ("negative_prompt_embeds", &cup, "prompt_embeds"),
    ] {
        assert!(both.raw(name).unwrap().equal(&from.raw(source).unwrap()), "{name}");
    }
    assert!(
        !cup.raw("prompt_embeds")
            .unwrap()
            .equal(&hat.raw("prompt_embeds").unwrap())
    );
}

#[test]
fn what_has_no_effect_and_what_is_unknown_is_noted() {
    let desk = Desk::new();
    let model = diffusers();
    let ignored = "the negative prompt has no effect with true_cfg 1; set true_cfg above 1";
    let flags = ["--prompt", "a 漢字 cup", "--negative-prompt", "red"];
    let (_, err) = desk.good("generate", &small(&model, &flags));
    let lines: Vec<&str> = err.lines().collect();
    for line in [
        &format!("warning: {ignored}"),
        "T5 does not know this of the prompt: “漢字”",
        "CLIP does not know this of the prompt: “漢字”",
    ] {
        assert_eq!(lines.iter().filter(|other| **other == line).count(), 1, "{line}\n{err}");
    }
    let (out, _) = desk.good("generate", &small(&model, &["--negative-prompt", "red", "--plan"]));
    assert!(out.contains(&format!("\nwarning:     {ignored}\n")), "{out}");
    let (_, err) = desk.good("generate", &small(&model, &["--prompt", "a cup"]));
    assert!(!err.contains("warning:") && !err.contains("does not know"), "{err}");
}

#[test]
fn requests_out_of_range_are_refused() {
    let desk = Desk::new();
    let model = diffusers();
    for (more, words) in [
        (
            &["--width", "100", "--height", "64"][..],
            "invalid image size: expected sides that are multiples of 16",
        ),
        (
            &["--width", "1000000"],
            "invalid image size: expected 1 to 8192 pixels on a side, got 1000000",
        ),
        (&["--steps", "100000"], "invalid steps: expected 1 to 1000, got 100000"),
        (
            &["--guidance", "nan"],
            "invalid guidance: expected a value from -1000 to 1000",
        ),
        (&["--device", "cuda:999"], "device cuda:999 is not available: "),
        (
            &["--device", "tpu"],
            "invalid device: expected cpu, cuda or cuda:N, got tpu",
        ),
        (
            &["--out", "a.bmp"],
            "invalid output file: expected a name that ends in .png, .jpg or .webp, got a.bmp",
        ),
        (
            &["--out", "no/a.png"],
            "cannot access no: there is no such file or folder; check the path",
        ),
        (
            &["--dump", "no/a.safetensors"],
            "cannot access no: there is no such file or folder; check the path",
        ),
    ] {
        desk.bad("generate", &small(&model, more), words);
    }
    desk.bad(
        "edit",
        &small(&model, &["--strength", "-1"]),
        "invalid strength: expected",
    );
    RgbImage::from_pixel(20_000, 1, Rgb([1, 2, 3]))
        .save(desk.path("wide.png"))
        .unwrap();
    let args = small(&model, &["--image", "wide.png", "--out", "a.webp"]);
    desk.bad(
        "edit",
        &args,
        "expected at most 16383 pixels on a side for WebP; write a PNG, got 20000x1",
    );
}

#[test]
fn images_that_are_none_are_refused() {
    let desk = Desk::new();
    std::fs::write(desk.path("text.png"), "hello").unwrap();
    std::fs::write(
        desk.path("cut.jpg"),
        &std::fs::read(fixture("turned6.jpg")).unwrap()[..800],
    )
    .unwrap();
    desk.bad(
        "edit",
        &["--image", "none.png"],
        "cannot access none.png: there is no such file or folder; check the path",
    );
    desk.bad("edit", &["--image", "."], "name the folder of the results by --out");
    let words = "cannot use the image text.png: it is a text, not an image; give a PNG, JPEG or WebP file";
    desk.bad("edit", &["--image", "text.png"], words);
    desk.bad(
        "edit",
        &["--image", "cut.jpg"],
        "cannot use the image cut.jpg: it ends early; the file is damaged",
    );
    desk.bad(
        "reconstruct",
        &["--vae", &diffusers(), "--image", "text.png"],
        "cannot use the image text.png: ",
    );
}

#[test]
fn models_that_are_not_whole_are_refused() {
    let desk = Desk::new();
    desk.bad(
        "generate",
        &["--model", "none"],
        "cannot access none: there is no such folder, expected the folder of",
    );
    let folder = copy(Layout::SingleFiles);
    let model = folder.path().display().to_string();
    let file = folder.path().join("ae.safetensors");
    add(&file, "line\nbreak\u{1b}[31m");
    desk.bad(
        "generate",
        &["--model", &model],
        "1 tensor that the model does not know: `line\\nbreak\\u{1b}[31m`",
    );
    truncate(&file, 1000);
    desk.bad(
        "generate",
        &["--model", &model],
        "it may be truncated or damaged, fetch it again",
    );
    desk.bad("inspect", &[&model], "it may be truncated or damaged, fetch it again");
    std::fs::remove_file(&file).unwrap();
    desk.bad(
        "generate",
        &["--model", &model],
        "no VAE found; looked for a *.safetensors, *.sft or *.gguf file with its tensors",
    );
}

#[test]
fn a_nan_in_the_weights_is_named_and_no_image_written() {
    let desk = Desk::new();
    let folder = copy(Layout::SingleFiles);
    let name = "double_blocks.0.txt_mlp.0.weight";
    replace(&folder.path().join("flux1-kontext.safetensors"), name, |t| {
        let _ = t.get(0).get(0).fill_(f64::NAN);
        t.shallow_clone()
    });
    let model = folder.path().display().to_string();
    desk.bad(
        "generate",
        &small(&model, &[]),
        "tensor `double_blocks.0.txt_mlp.0.weight` of ",
    );
}

#[test]
fn inspect_tells_what_a_checkpoint_holds_and_lacks() {
    let desk = Desk::new();
    for layout in [Layout::Diffusers, Layout::SingleFiles] {
        let (out, err) = desk.good("inspect", &[&model(layout).display().to_string()]);
        assert!(
            out.contains("\nVAE: 240 tensors") && out.ends_with("\ncomplete\n") && err.is_empty(),
            "{out}{err}"
        );
    }
    let folder = copy(Layout::Diffusers);
    let path = folder.path().join("transformer/diffusion_pytorch_model.safetensors");
    let name = "transformer_blocks.0.attn.norm_k.weight";
    rename(&path, "x_embedder.bias", "x_embedder.bis");
    replace(&path, name, |t| t.narrow(0, 0, 64).contiguous());
    add(&folder.path().join("text_encoder/model.safetensors"), "extra");
    let model = folder.path().display().to_string();
    desk.bad("inspect", &[&model], "has 4 fault(s), listed above");
    let (_, out, _) = told(&desk.run("inspect", &[&model]));
    assert!(
        out.contains("no tensor `x_embedder.bias` (nearest: `x_embedder.bis`)"),
        "{out}"
    );
    assert!(
        out.contains(&format!(
            "tensor `{name}` has shape [64], the configuration asks for [128]"
        )),
        "{out}"
    );
    assert!(
        out.contains("unused: `x_embedder.bis`") && out.contains("unused: `extra`"),
        "{out}"
    );
}

#[test]
fn inspect_reports_the_parts_of_a_single_file() {
    let desk = Desk::new();
    let folder = model(Layout::SingleFiles);
    for (file, part) in [
        ("flux1-kontext.safetensors", "transformer: "),
        ("ae.safetensors", "VAE: 240 tensors"),
        ("clip_l.safetensors", "CLIP: "),
        ("t5xxl.safetensors", "T5: "),
    ] {
        let (out, _) = desk.good("inspect", &[&folder.join(file).display().to_string()]);
        assert!(out.starts_with(part) && out.ends_with("\ncomplete\n"), "{file}: {out}");
    }
    let folder = copy(Layout::SingleFiles);
    let file = folder.path().join("flux1-kontext.safetensors");
    let path = file.display().to_string();
    add(&file, "extra");
    desk.bad(
        "inspect",
        &[&path],
        "flux1-kontext.safetensors has 1 fault(s), listed above",
    );
    rename(&file, "extra", "distilled_guidance_layer.in_proj.weight");
    desk.bad(
        "inspect",
        &[&path],
        "it is the transformer of Chroma; take that of FLUX.1 Kontext",
    );
}

#[test]
fn single_parts_are_named_by_flags() {
    let desk = Desk::new();
    let folder = copy(Layout::SingleFiles);
    let vae = folder.path().join("ae.safetensors");
    std::fs::copy(&vae, folder.path().join("old.safetensors")).unwrap();
    let (model, vae) = (folder.path().display().to_string(), vae.display().to_string());
    desk.bad(
        "generate",
        &small(&model, &["--prompt", "a cat"]),
        "--vae of the programs)",
    );
    let args = [
        "--prompt",
        "a cat",
        "--plan",
        "--vae",
        &vae,
        "--t5-tokenizer",
        &format!("{model}/tokenizer_2"),
    ];
    let (out, _) = desk.good("generate", &small(&model, &args));
    assert!(out.contains("steps"), "{out}");
    desk.bad("inspect", &[&model], "two files for the VAE");
    let (out, _) = desk.good("inspect", &[&model, "--vae", &vae]);
    assert!(out.ends_with("\ncomplete\n"), "{out}");
}

/// Runs `inspect` as a user who is not root, whom no permission binds.
#[cfg(unix)]
#[test]
fn a_locked_folder_is_said_to_be_locked() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    const NOBODY: u32 = 65_534;
    let folder = copy(Layout::Diffusers);
    let mode = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(folder.path(), 0o755);
    let vae = folder.path().join("vae");
    mode(&vae, 0o000);
    let mut inspect = program("inspect");
    if std::fs::read_dir(&vae).is_ok() {
        inspect.uid(NOBODY).gid(NOBODY);
    }
    let (code, _, err) = told(&inspect.arg(folder.path()).stdin(Stdio::null()).output().unwrap());
    mode(&vae, 0o755);
    assert_eq!(code, Some(1), "{err}");
    let words = format!("cannot access {}: ", vae.display());
    assert!(
        err.contains(&words) && err.to_lowercase().contains("permission"),
        "{err}"
    );
}

#[test]
fn reconstruct_measures_an_autoencoder() {
    let desk = Desk::new();
    let folder = model(Layout::SingleFiles);
    let (vae, image) = (
        folder.join("ae.safetensors").display().to_string(),
        fixture("palette.png"),
    );
    let args = ["--vae", &vae, "--image", &image, "--device", "cpu", "--out"];
    let (out, _) = desk.good("reconstruct", &[&args[..], &["a.png"]].concat());
    assert!(
        out.starts_with("16x16, 16 latent channels, ") && out.contains("\nPSNR ") && out.contains("\nSSIM "),
        "{out}"
    );
    assert_eq!(kontext::open_image(desk.path("a.png")).unwrap().dimensions(), (16, 16));
    for tile in ["0", "-8", "100"] {
        let tiled = [&args[..], &["b.png", "--tile", tile]].concat();
        desk.bad(
            "reconstruct",
            &tiled,
            "invalid tile: expected a positive multiple of 8 pixels",
        );
    }
    RgbImage::from_pixel(1, 1, Rgb([1, 2, 3]))
        .save(desk.path("dot.png"))
        .unwrap();
    let words = "dot.png: invalid image: expected at least 16 pixels on a side (give a larger one), got 1x1";
    desk.bad("reconstruct", &["--vae", &vae, "--image", "dot.png"], words);
    let dit = folder.join("flux1-kontext.safetensors").display().to_string();
    desk.bad("reconstruct", &["--vae", &dit], "no autoencoder found; looked for");
}

/// Writes two images and a broken one.
fn album(desk: &Desk) {
    std::fs::create_dir(desk.path("album")).unwrap();
    for (name, step) in [("a.png", 3), ("b.jpg", 5)] {
        let image = RgbImage::from_fn(72, 40, |x, y| Rgb([(x * step) as u8, (y * step) as u8, (x * y) as u8]));
        image.save(desk.path("album").join(name)).unwrap();
    }
    std::fs::write(desk.path("album").join("c.png"), "hello").unwrap();
    std::fs::write(desk.path("album").join("notes.txt"), "hello").unwrap();
}

#[test]
fn vae_table_measures_autoencoders_and_goes_on_after_a_kill() {
    let desk = Desk::new();
    album(&desk);
    let vae = format!("random={}", model(Layout::SingleFiles).join("ae.safetensors").display());
    let shipped = format!("emoji={}/models/kontext-emoji/vae", env!("CARGO_MANIFEST_DIR"));
    let args = [
        "--images", "album", "--vae", &vae, "--vae", &shipped, "--device", "cpu", "--out", "work",
    ];
    let (first, err) = desk.good(
        "vae_table",
        &[&args[..], &["--csv", "t.csv", "--markdown", "t.md"]].concat(),
    );
    assert!(err.contains("skipped: cannot use the image album/c.png"), "{err}");
    assert!(
        err.contains("1 of 3 images cannot be used and are left out") && !err.contains("notes"),
        "{err}"
    );
    let csv = std::fs::read_to_string(desk.path("t.csv")).unwrap();
    let rows: Vec<&str> = csv.lines().collect();
    assert_eq!(
        rows[0],
        "vae,pictures,pdist,pdist_se,ssim,ssim_se,psnr,psnr_se,cosine,cosine_se"
    );
    assert!(
        rows[1].starts_with("random,2,,,") && rows[2].starts_with("emoji,2,,,") && rows.len() == 3,
        "{csv}"
    );
    assert!(
        std::fs::read_to_string(desk.path("t.md"))
            .unwrap()
            .contains("| emoji | 2 | - | ")
    );

    // Killed within the last line: only that image is measured again.
    let records = desk.path("work").join("reconstructions.jsonl");
    let whole = std::fs::read_to_string(&records).unwrap();
    assert_eq!(whole.lines().count(), 4);
    truncate(&records, whole.len() as u64 - 9);
    let (again, _) = desk.good(
        "vae_table",
        &[&args[..], &["--strip", "s.png", "--strip-pictures", "1"]].concat(),
    );
    assert_eq!(std::fs::read_to_string(&records).unwrap(), whole);
    let table = |text: &str| text.lines().take(3).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(table(&again), table(&first));
    assert_eq!(
        kontext::open_image(desk.path("s.png")).unwrap().dimensions(),
        (3 * 132 - 4, 2 * 132 - 4)
    );
    // Another size is another measurement.
    desk.good("vae_table", &[&args[..], &["--size", "32"]].concat());
    assert_eq!(std::fs::read_to_string(&records).unwrap().lines().count(), 8);
}

#[test]
fn vae_table_says_what_it_cannot_use() {
    let desk = Desk::new();
    album(&desk);
    std::fs::create_dir(desk.path("empty")).unwrap();
    std::fs::create_dir(desk.path("broken")).unwrap();
    std::fs::write(desk.path("broken").join("c.png"), "hello").unwrap();
    let folder = model(Layout::SingleFiles);
    let file = |name: &str| format!("A={}", folder.join(name).display());
    let vae = file("ae.safetensors");
    let bad = |args: &[&str], words: &str| desk.bad("vae_table", &[&["--device", "cpu"], args].concat(), words);
    bad(
        &["--images", "album"],
        "the following required arguments were not provided: --vae <NAME=PATH>",
    );
    for text in ["ae.safetensors", "=ae.safetensors", "A="] {
        bad(
            &["--images", "album", "--vae", text],
            "expected NAME=PATH, such as TAEF1=taef1.safetensors",
        );
    }
    bad(
        &["--images", "album", "--vae", "A=none.safetensors"],
        "autoencoder A: cannot access none.safetensors: there is",
    );
    bad(
        &["--images", "album", "--vae", &file("flux1-kontext.safetensors")],
        "no autoencoder found; looked for",
    );
    bad(
        &["--images", "album", "--vae", &vae, "--vae", &vae],
        "two autoencoders have the same name",
    );
    bad(&["--images", "none", "--vae", &vae], "cannot read the folder none: ");
    bad(
        &["--images", "empty", "--vae", &vae],
        "no images in empty: expected .png, .jpg or .webp files",
    );
    bad(
        &["--images", "broken", "--vae", &vae],
        "none of the 1 images in broken can be used",
    );
    bad(
        &["--images", "album", "--vae", &vae, "--size", "100"],
        "expected \"original\" or a multiple of 16",
    );
    bad(
        &["--images", "album", "--vae", &vae, "--csv", "none/t.csv"],
        "cannot access none: there is no such file",
    );
    bad(&["--images", "album", "--vae", &vae, "--strip", "s.gif"], "s.gif");
    let side = [
        "--images",
        "album",
        "--vae",
        &vae,
        "--strip",
        "s.png",
        "--strip-side",
        "0",
    ];
    bad(&side, "0 is not in 1..=1024");
    bad(
        &["--images", "album", "--vae", &vae, "--heads", "h.safetensors"],
        "--perceptual <FILE>",
    );
    let network = folder.join("ae.safetensors").display().to_string();
    let words = "it is none of AlexNet, VGG16 and SqueezeNet 1.1";
    bad(&["--images", "album", "--vae", &vae, "--perceptual", &network], words);
}

#[test]
fn a_reader_that_goes_away_ends_the_program_in_words() {
    let desk = Desk::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = program("inspect")
        .arg(diffusers())
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.starts_with("error: cannot write to standard output: "), "{err}");
    assert!(desk.files().is_empty());
}

#[test]
fn what_is_wrong_with_a_training_is_said_before_the_first_evaluation() {
    let desk = Desk::new();
    let (model, data) = (diffusers(), desk.path("data"));
    std::fs::create_dir(&data).unwrap();
    RgbImage::from_pixel(64, 64, Rgb([9, 90, 200]))
        .save(data.join("a.png"))
        .unwrap();
    std::fs::write(data.join("a.txt"), "a square").unwrap();
    let bad = |more: &[&str], words: &str| {
        let args = [&["--model", &model, "--data", "data", "--out", "run"][..], more].concat();
        desk.bad("finetune", &args, words);
    };
    bad(&[], "as other trainers have it: write a line for each image, such as {");
    let write = |lines: &[&str]| std::fs::write(data.join("metadata.jsonl"), lines.join("\r\n")).unwrap();
    let held_out = r#"{"source": "a.png", "target": "a.png", "instruction": "b", "split": "test"}"#;
    write(&["\u{feff}", held_out]);
    bad(&[], "no item of split `train` has a weight above 0");
    // The split is `train`; a line that cannot be used is skipped.
    let line = r#"{"source": "a.png", "target": "a.png", "prompt": ""}"#;
    write(&[line, r#"{"target": "/etc/a.png", "prompt": ""}"#, held_out]);
    bad(
        &["--rank", "0"],
        "invalid method.rank: expected a number from 1 to 65536, got 0",
    );
    bad(&["--rank", "100000"], "invalid method.rank");
    bad(
        &["--steps", "0"],
        "invalid steps: expected a number from 1 to 1000000000, got 0",
    );
    bad(&["--rate", "nan"], "invalid rate.peak");
    bad(&["--minutes", "inf"], "invalid --minutes");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_says_how_far_it_came_and_writes_nothing() {
    let desk = Desk::new();
    let model = diffusers();
    let args = [
        "--model",
        &model,
        "--device",
        "cpu",
        "--width",
        "256",
        "--height",
        "256",
        "--steps",
        "1000",
        "--negative-prompt",
        "red",
    ];
    let mut command = program("generate");
    let mut child = command
        .args(args)
        .current_dir(desk.0.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A line of the run itself, which has its handler of Ctrl-C then.
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("warning: the negative prompt")));
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let last = lines.last().unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{last}");
    assert!(
        last.starts_with("error: cancelled after ") && last.ends_with(" of 1000 steps"),
        "{last}"
    );
    assert!(desk.files().is_empty());
}

#[test]
fn vae_table_shows_the_published_numbers_next_to_the_same_distance() {
    let desk = Desk::new();
    album(&desk);
    let weights = Weights::synthetic(1);
    let features =
        kontext_bench::metrics::Features::new(kontext_bench::metrics::Backbone::Vgg16, &weights, kontext::Device::Cpu);
    features.unwrap();
    let tensor = |(name, shape): (String, Vec<i64>)| {
        let tensor = weights.tensor(&name, &shape).unwrap().to_kind(kontext::Kind::Half);
        (name, tensor)
    };
    let tensors: Vec<_> = weights.shapes().into_iter().map(tensor).collect();
    kontext::crates::kontext_formats::save(desk.path("vgg16.safetensors"), &tensors, None).unwrap();
    let vae = format!("emoji={}/models/kontext-emoji/vae", env!("CARGO_MANIFEST_DIR"));
    let args = [
        "--images",
        "album",
        "--vae",
        &vae,
        "--device",
        "cpu",
        "--cosine",
        "vgg16.safetensors",
    ];
    let table = [&args[..], &["--size", "32", "--csv", "t.csv", "--markdown", "t.md"]].concat();
    let (out, err) = desk.good("vae_table", &table);
    assert!(out.contains("PDist by cosines: cosine-vgg16; means"), "{out}");
    assert!(
        err.contains("warning: the published numbers are of 256x256 pixels, and these of another size"),
        "{err}"
    );
    let markdown = std::fs::read_to_string(desk.path("t.md")).unwrap();
    assert!(
        markdown.contains("| Flux-VAE, published | 4096 | - | 0.332 | 0.896 | 31.1 |\n"),
        "{markdown}"
    );
    let csv = std::fs::read_to_string(desk.path("t.csv")).unwrap();
    let row: Vec<&str> = csv.lines().nth(1).unwrap().split(',').collect();
    let [distance, error] = [row[8], row[9]].map(|number| number.parse::<f64>().unwrap());
    assert!(
        row[2].is_empty() && distance > 0.0 && error > 0.0 && csv.lines().count() == 2,
        "{csv}"
    );
    let (_, err) = desk.good("vae_table", &[&args[..], &["--size", "256"]].concat());
    assert!(!err.contains("warning"), "{err}");
}
