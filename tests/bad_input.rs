//! Every wrong input ends in one sentence with the subject, the cause and the remedy.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use std::path::Path;

use common::{add, copy, model, rename, replace, truncate};
use image::{Rgb, RgbImage};
use kontext::crates::kontext_core::array;
use kontext::crates::kontext_device::device;
use kontext::crates::kontext_text::{ClipEncoder, T5Encoder};
use kontext::io::{check_image_file, encode_image, save_image};
use kontext::{Autoencoder, Checkpoint, Device, Dit, Error, Kind, Layout, Pipeline, Request, Tensor, Weights};
use kontext_bench::metrics::Perceptual;
use serde_json::{Value, json};

const DIT: &str = "transformer/diffusion_pytorch_model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
const CLIP: &str = "text_encoder/model.safetensors";
const T5: &str = "text_encoder_2/model.safetensors";

/// Returns the whole chain of an error, as programs print it.
fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    assert!(!text.contains('\n') && !text.ends_with('.'), "{text}");
    text
}

fn load(folder: &Path) -> kontext::Result<Pipeline> {
    Pipeline::builder()
        .device(Device::Cpu)
        .max_sequence_length(16)
        .load(folder)
}

/// Returns the error of loading a folder, without the folder's path.
fn refusal(folder: &Path) -> String {
    sentence(&load(folder).unwrap_err())
        .replace(&format!("{}/", folder.display()), "")
        .replace(&folder.display().to_string(), "FOLDER")
}

/// Returns the error of loading a model after some damage.
fn damaged(layout: Layout, damage: impl FnOnce(&Path)) -> String {
    let folder = copy(layout);
    damage(folder.path());
    refusal(folder.path())
}

#[test]
fn a_folder_that_is_not_there_or_is_a_file_is_told_what_to_give() {
    let folder = tempfile::tempdir().unwrap();
    let expected = "expected the folder of a model, with diffusers' folders or BFL's single files; check the path";
    let none = folder.path().join("none");
    assert_eq!(
        refusal(&none),
        format!("cannot access FOLDER: there is no such folder, {expected}")
    );
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert_eq!(
        refusal(&file),
        format!("cannot access FOLDER: it is a file, {expected}")
    );
    std::fs::remove_file(file).unwrap();
    assert_eq!(
        refusal(folder.path()),
        "cannot load FOLDER: no transformer found; looked for a *.safetensors, *.sft or *.gguf file with its tensors in \
         it and in its folders `transformer`, `diffusion_models`, `unet`, `checkpoints`; fetch what is missing or name \
         another path"
    );
}

#[test]
fn a_missing_part_is_named_in_both_layouts() {
    for (name, part, looked) in [
        (
            "transformer",
            "transformer",
            "its folders `transformer`, `diffusion_models`, `unet`, `checkpoints`",
        ),
        ("vae", "VAE", "its folders `vae`, `checkpoints`"),
        (
            "text_encoder",
            "CLIP text encoder",
            "its folders `text_encoder`, `text_encoders`, `clip`, `checkpoints`",
        ),
        (
            "text_encoder_2",
            "T5 text encoder",
            "its folders `text_encoder_2`, `text_encoders`, `clip`, `checkpoints`",
        ),
    ] {
        assert_eq!(
            damaged(Layout::Diffusers, |f| std::fs::remove_dir_all(f.join(name)).unwrap()),
            format!(
                "cannot load FOLDER: no {part} found; looked for a *.safetensors, *.sft or *.gguf file with its tensors \
                 in it and in {looked}; fetch what is missing or name another path"
            )
        );
    }
    for (name, part, other) in [
        ("tokenizer", "CLIP tokenizer", "vocab.json"),
        ("tokenizer_2", "T5 tokenizer", "tokenizer.json"),
    ] {
        assert_eq!(
            damaged(Layout::Diffusers, |f| std::fs::remove_dir_all(f.join(name)).unwrap()),
            format!(
                "cannot load FOLDER: no {part} found; looked for {name} and {other} in it; fetch what is missing or name \
                 another path"
            )
        );
    }
    for (name, part) in [
        ("flux1-kontext.safetensors", "transformer"),
        ("ae.safetensors", "VAE"),
        ("clip_l.safetensors", "CLIP text encoder"),
        ("t5xxl.safetensors", "T5 text encoder"),
    ] {
        let text = damaged(Layout::SingleFiles, |f| std::fs::remove_file(f.join(name)).unwrap());
        assert!(
            text.starts_with(&format!(
                "cannot load FOLDER: no {part} found; looked for a *.safetensors, *.sft or *.gguf file"
            )),
            "{text}"
        );
    }
    let text = damaged(Layout::SingleFiles, |f| {
        std::fs::remove_dir_all(f.join("tokenizer_2")).unwrap();
    });
    assert!(
        text.contains("no T5 tokenizer found; looked for tokenizer_2 and tokenizer.json in it; fetch"),
        "{text}"
    );
}

#[test]
fn a_missing_file_of_a_part_is_named() {
    let remove = |name: &'static str| damaged(Layout::Diffusers, |f| std::fs::remove_file(f.join(name)).unwrap());
    for (name, folder) in [
        (DIT, "transformer"),
        (VAE, "vae"),
        (CLIP, "text_encoder"),
        (T5, "text_encoder_2"),
    ] {
        let text = remove(name);
        assert!(
            text.starts_with(&format!("cannot load {folder}: no weights found; looked for")),
            "{text}"
        );
    }
    let text = remove("transformer/config.json");
    assert_eq!(
        text,
        "cannot load transformer: no configuration of the transformer found; looked for `config.json` in it; fetch \
         what is missing or name another path"
    );
    let text = remove("tokenizer_2/tokenizer.json");
    assert_eq!(
        text,
        "cannot use the tokenizer tokenizer_2: the folder holds neither tokenizer.json nor vocab.json with \
         merges.txt; fetch them again"
    );
    let text = remove("tokenizer/merges.txt");
    assert!(
        text.starts_with("cannot use the tokenizer tokenizer: the folder holds neither"),
        "{text}"
    );
}

#[test]
fn two_files_for_one_part_are_both_named() {
    let text = damaged(Layout::SingleFiles, |f| {
        std::fs::copy(f.join("ae.safetensors"), f.join("old.safetensors")).unwrap();
    });
    assert!(
        text.contains("two files for the VAE: ae.safetensors and old.safetensors; move one away"),
        "{text}"
    );
}

#[test]
fn a_truncated_or_corrupt_file_is_named_with_its_sizes() {
    for name in [DIT, VAE, CLIP, T5] {
        let text = damaged(Layout::Diffusers, |f| truncate(&f.join(name), 200_000));
        assert!(
            text.starts_with(&format!("cannot load {name}: not a valid safetensors file: its header")),
            "{text}"
        );
        assert!(
            text.ends_with("the file has 200000; it may be truncated or damaged, fetch it again"),
            "{text}"
        );
    }
    let text = damaged(Layout::SingleFiles, |f| {
        std::fs::write(f.join("ae.safetensors"), "").unwrap();
    });
    assert!(
        text.starts_with("cannot load FOLDER: no VAE found; looked for")
            && text.contains(
                "found instead `ae.safetensors`, which cannot be used (not a valid safetensors file: it has 0"
            ),
        "{text}"
    );
}

#[test]
fn a_tensor_of_the_wrong_shape_or_dtype_is_named() {
    let name = "transformer_blocks.0.attn.norm_k.weight";
    assert_eq!(
        damaged(Layout::Diffusers, |f| replace(&f.join(DIT), name, |t| t
            .narrow(0, 0, 64)
            .contiguous())),
        format!(
            "cannot load {DIT}: tensor `{name}` has shape [64], the configuration asks for [128]; they are of \
             different models, take both from one"
        )
    );
    assert_eq!(
        damaged(Layout::Diffusers, |f| replace(&f.join(DIT), name, |t| t
            .to_kind(Kind::Int64))),
        format!(
            "cannot load {DIT}: tensor `{name}` has dtype Int64; expected one of F64, F32, F16, BF16, F8_E4M3, \
             F8_E5M2, fetch the file in one of them"
        )
    );
    let text = damaged(Layout::SingleFiles, |f| {
        replace(&f.join("ae.safetensors"), "decoder.norm_out.bias", |t| {
            t.narrow(0, 0, 16).contiguous()
        });
    });
    assert!(
        text.starts_with("cannot load ae.safetensors: tensor `decoder.norm_out.bias` has shape [16]"),
        "{text}"
    );
}

#[test]
fn an_unknown_and_a_missing_tensor_are_named() {
    for name in [DIT, VAE, CLIP, T5] {
        assert_eq!(
            damaged(Layout::Diffusers, |f| add(&f.join(name), "extra.weight")),
            format!(
                "cannot load {name}: 1 tensor that the model does not know: `extra.weight`; the file is of another \
                 model, fetch the right one"
            )
        );
    }
    assert_eq!(
        damaged(Layout::Diffusers, |f| rename(
            &f.join(DIT),
            "norm_out.linear.weight",
            "norm_out.linear.weigth"
        )),
        format!(
            "cannot load {DIT}: no tensor `norm_out.linear.weight` (nearest: `norm_out.linear.weigth`); the file is \
             incomplete or of another model, fetch the right one"
        )
    );
    for (file, name) in [
        ("flux1-kontext.safetensors", "single_blocks.1.linear2.weight"),
        ("ae.safetensors", "encoder.mid.attn_1.q.weight"),
        ("clip_l.safetensors", "text_model.final_layer_norm.bias"),
        ("t5xxl.safetensors", "encoder.final_layer_norm.weight"),
    ] {
        let text = damaged(Layout::SingleFiles, |f| {
            rename(&f.join(file), name, &format!("{name}_"));
        });
        assert!(
            text.starts_with(&format!("cannot load {file}: no tensor `{name}` (nearest: `{name}_`)")),
            "{text}"
        );
    }
}

#[test]
fn parts_of_different_models_are_refused() {
    let text = damaged(Layout::Diffusers, |f| {
        let path = f.join("tokenizer_2/tokenizer.json");
        let mut json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let vocab = json["model"]["vocab"].as_array_mut().unwrap();
        vocab.extend((0..100).map(|i| json!([format!("word{i}"), -4.0])));
        std::fs::write(path, json.to_string()).unwrap();
    });
    assert!(
        text.starts_with("cannot use the tokenizer tokenizer_2/tokenizer.json: its ids go up to"),
        "{text}"
    );
    assert!(text.ends_with("take the tokenizer that came with the model"), "{text}");
}

/// Builds the part of a configuration, from its tensors' shapes only.
fn build(folder: &Path, part: &str) -> kontext::Result<()> {
    let path = folder.join(part);
    let weights = || Weights::open(&path).map(|w| w.audited());
    match part {
        "transformer" | "scheduler" => {
            let checkpoint = Checkpoint::find(folder)?;
            let (weights, config) = checkpoint.open_transformer()?;
            checkpoint.shift(&config)?;
            Dit::new(&weights.audited(), &config, |_| ()).map(drop)
        }
        "vae" => Autoencoder::from_weights(&weights()?, Some(&path.join("config.json"))).map(drop),
        "text_encoder" => ClipEncoder::from_weights(&weights()?, &path, Kind::Float).map(drop),
        _ => T5Encoder::from_weights(&weights()?, &path, Kind::Float).map(drop),
    }
}

#[test]
fn configurations_with_any_number_in_them_load_or_are_refused() {
    let folder = copy(Layout::Diffusers);
    for part in ["transformer", "scheduler", "vae", "text_encoder", "text_encoder_2"] {
        let file = if part == "scheduler" {
            "scheduler/scheduler_config.json"
        } else {
            &format!("{part}/config.json")
        };
        let path = folder.path().join(file);
        let good = std::fs::read_to_string(&path).unwrap();
        let good: Value = serde_json::from_str(&good).unwrap();
        build(folder.path(), part).unwrap();
        for key in good.as_object().unwrap().keys().filter(|key| !good[*key].is_string()) {
            for value in [
                json!(0),
                json!(-1),
                json!(1_i64 << 40),
                json!(i64::MAX),
                json!(1e300),
                json!("x"),
            ] {
                let mut bad = good.clone();
                bad[key] = if good[key].is_array() {
                    json!([value, value, value, value])
                } else {
                    value.clone()
                };
                std::fs::write(&path, bad.to_string()).unwrap();
                if let Err(error) = build(folder.path(), part) {
                    let text = sentence(&error);
                    assert!(text.contains(folder.path().to_str().unwrap()), "{key} {value}: {text}");
                }
            }
        }
        std::fs::write(&path, "{\"a\":").unwrap();
        let words = "the configuration cannot be used: EOF while parsing a value at line 1 column 5";
        assert_eq!(
            refusal(folder.path()),
            format!("cannot load {file}: {words}; correct it or fetch it again")
        );
        std::fs::write(&path, good.to_string()).unwrap();
    }
    load(folder.path()).unwrap();
}

#[test]
fn a_network_of_distances_that_is_no_such_network_is_told_what_is() {
    let open = |path: &Path| {
        let error = Perceptual::open(path, None, Device::Cpu).unwrap_err();
        sentence(&error).replace(&path.display().to_string(), "FILE")
    };
    let other = open(&model(Layout::SingleFiles).join("ae.safetensors"));
    let expected =
        "cannot load FILE: the configuration cannot be used: it is none of AlexNet, VGG16 and SqueezeNet 1.1 ";
    assert!(
        other.starts_with(expected) && other.ends_with("save one of them as safetensors"),
        "{other}"
    );
    let folder = tempfile::tempdir().unwrap();
    let pickle = folder.path().join("alex.pth");
    std::fs::write(&pickle, b"PK\x03\x04 and so on").unwrap();
    let pickle = open(&pickle);
    assert!(
        pickle.starts_with("cannot load FILE: not a safetensors file but"),
        "{pickle}"
    );
}

#[test]
fn a_device_that_is_not_there_is_refused_with_one_that_is() {
    for text in ["gpu", "cuda:", "cuda:-1", "cuda:99999999", ""] {
        let error = sentence(&device::parse(text).unwrap_err());
        assert_eq!(
            error,
            format!("invalid device: expected cpu, cuda or cuda:N, got {text}")
        );
    }
    if let Err(error) = device::parse("cuda") {
        assert!(
            sentence(&error).starts_with("device cuda:0 is not available: "),
            "{error}"
        );
    }
    // More devices than any machine has.
    let error = sentence(
        &Pipeline::builder()
            .device(Device::Cuda(999))
            .load(model(Layout::Diffusers))
            .unwrap_err(),
    );
    assert!(error.starts_with("device cuda:999 is not available: "), "{error}");
}

#[test]
fn a_dtype_that_is_not_for_computing_is_refused() {
    let error = Pipeline::builder()
        .device(Device::Cpu)
        .dtype(Kind::Int64)
        .load(model(Layout::Diffusers))
        .unwrap_err();
    assert_eq!(
        sentence(&error),
        "invalid dtype: expected Float, BFloat16 or Half, got Int64"
    );
    for tokens in [0, 65_537, 1 << 31, 1 << 56, 1 << 60, usize::MAX] {
        let builder = Pipeline::builder().device(Device::Cpu).max_sequence_length(tokens);
        let expected = format!("invalid max_sequence_length: expected a number from 1 to 65536, got {tokens}");
        assert_eq!(sentence(&builder.load(model(Layout::Diffusers)).unwrap_err()), expected);
        let request = Request::generate("a cat");
        assert_eq!(
            sentence(&builder.plan(model(Layout::Diffusers), &request).unwrap_err()),
            expected
        );
    }
}

#[test]
fn a_damaged_t5_configuration_is_an_error_and_not_an_overflow() {
    for field in ["num_heads", "d_kv", "d_model", "d_ff", "num_layers", "vocab_size"] {
        for value in [i64::MIN, -1, 0, 1 << 32, 1 << 62, i64::MAX] {
            let words = damaged(Layout::Diffusers, |folder| {
                let path = folder.join("text_encoder_2/config.json");
                let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                config[field] = json!(value);
                std::fs::write(path, config.to_string()).unwrap();
            });
            assert!(
                words.starts_with("cannot load text_encoder_2/config.json: ")
                    && words.contains(&format!("invalid {field}: expected a number from 1 to "))
                    && words.ends_with(&format!("got {value}; correct it or fetch it again")),
                "{words}"
            );
        }
    }
}

#[test]
fn a_tokenizer_refuses_a_length_that_no_memory_holds() {
    let tokenizer =
        kontext::crates::kontext_text::Tokenizer::open(model(Layout::Diffusers).join("tokenizer_2")).unwrap();
    for length in [65_537, 1 << 56, usize::MAX] {
        let words = sentence(&tokenizer.encode("a cat", length).unwrap_err());
        let expected = format!("invalid length in tokens: expected a number from 0 to 65536, got {length}");
        assert_eq!(words, expected);
    }
    assert_eq!(tokenizer.encode("a cat", 65_536).unwrap().ids.len(), 65_536);
}

#[test]
fn requests_out_of_range_are_answered_with_the_range() {
    let pipe = load(&model(Layout::Diffusers)).unwrap();
    let image = RgbImage::from_pixel(40, 30, Rgb([9, 8, 7]));
    let refused = |request: Request, words: &str| {
        let error = pipe.run(&request).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
        assert_eq!(sentence(&error), words);
    };
    let one = || Request::generate("x").size(32, 32).steps(1);
    refused(
        one().size(0, 32),
        "invalid image size: expected 1 to 8192 pixels on a side, got 0",
    );
    refused(
        one().size(u32::MAX, 32),
        "invalid image size: expected 1 to 8192 pixels on a side, got 4294967295",
    );
    refused(
        one().size(32, 40),
        "invalid image size: expected sides that are multiples of 16 from 16 to 8192 (nearest: 32x48), got 32x40",
    );
    refused(one().steps(0), "invalid steps: expected 1 to 1000, got 0");
    refused(
        one().steps(usize::MAX),
        "invalid steps: expected 1 to 1000, got 18446744073709551615",
    );
    refused(one().batch(0), "invalid batch: expected 1 to 256 images, got 0");
    let none = one().reference(RgbImage::new(0, 5));
    refused(none, "invalid reference image: expected at least one pixel, got 0x5");
    refused(
        Request::edit(&image, "").max_area(1),
        "invalid max_area: expected 256 to 67108864 pixels, got 1",
    );
}

#[test]
fn a_plan_needs_no_more_than_headers_and_is_that_of_the_loaded_model() {
    for layout in [Layout::Diffusers, Layout::SingleFiles] {
        let builder = Pipeline::builder().device(Device::Cpu);
        let pipe = builder.load(model(layout)).unwrap();
        let request = Request::edit(RgbImage::new(40, 30), "x").steps(3);
        assert_eq!(
            builder.plan(model(layout), &request).unwrap(),
            pipe.plan(&request).unwrap()
        );
        let error = builder.plan(model(layout), &request.steps(0)).unwrap_err();
        assert_eq!(sentence(&error), "invalid steps: expected 1 to 1000, got 0");
    }
}

#[test]
fn noise_of_another_shape_is_refused() {
    let pipe = load(&model(Layout::Diffusers)).unwrap();
    for shape in [vec![1, 5, 64], vec![4, 64], vec![0], vec![1, 4, 0]] {
        let noise = array::to_array(&Tensor::zeros(&shape, (Kind::Float, Device::Cpu))).unwrap();
        let error = sentence(
            &pipe
                .run(&Request::generate("x").size(32, 32).steps(1).noise(noise))
                .unwrap_err(),
        );
        let words = "invalid shape of the noise: expected [1, 4, 64] (batch, target tokens, 4 * latent channels), got";
        assert_eq!(error, format!("{words} {shape:?}"));
    }
}

#[test]
fn values_that_are_not_finite_are_refused_by_the_name_of_their_input_before_anything_runs() {
    let pipe = load(&model(Layout::Diffusers)).unwrap();
    let refused = |request: &Request| {
        let mut events = 0;
        let run = pipe.run_with(request, |_| {
            events += 1;
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(events, 0);
        sentence(&run.unwrap_err())
    };
    let request = || Request::edit(RgbImage::new(32, 32), "x").max_area(32 * 32).steps(1);
    for (value, shown) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
        (1e30, "1e30"),
        (-65_536.0, "-6.5536e4"),
    ] {
        let mut values = array::to_array(&Tensor::zeros([1, 4, 64], (Kind::Float, Device::Cpu))).unwrap();
        values[[0, 1, 2]] = value;
        for (name, request) in [
            ("noise", request().noise(values.clone())),
            ("image_latents", request().image_latents(values)),
        ] {
            let expected = "expected finite numbers from -65504 to 65504, got";
            let words = format!("invalid {name}: {expected} {shown} at place 66 of 256");
            assert_eq!(refused(&request), words);
        }
        if !value.is_finite() {
            assert!(refused(&request().true_cfg(f64::from(value))).starts_with("invalid true_cfg: "));
            assert!(refused(&request().guidance(f64::from(value))).starts_with("invalid guidance: "));
            assert!(refused(&request().strength(f64::from(value))).starts_with("invalid strength: "));
            assert!(refused(&request().sigmas([1.0, value])).starts_with("invalid sigmas: "));
        }
    }
    let values = |shape: [i64; 3]| array::to_array(&Tensor::full(shape, 65_504.0, (Kind::Float, Device::Cpu))).unwrap();
    pipe.plan(&request().noise(values([1, 4, 64])).image_latents(values([1, 4, 64])))
        .unwrap();
}

#[test]
fn memory_that_is_not_there_is_told_apart() {
    let error = Tensor::f_zeros([1 << 50], (Kind::Float, Device::Cpu))
        .map_err(Error::from)
        .unwrap_err();
    assert!(error.is_out_of_memory(), "{}", sentence(&error));
}

#[test]
fn an_output_that_cannot_be_written_is_refused_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let image = RgbImage::from_pixel(20_000, 1, Rgb([1, 2, 3]));
    let told = |path: &Path, words: &str| {
        for result in [check_image_file(path), save_image(&image, path, &[])] {
            let text = sentence(&result.unwrap_err());
            assert_eq!(text.replace(&folder.path().display().to_string(), "F"), words);
        }
    };
    std::fs::create_dir(folder.path().join("a.png")).unwrap();
    std::fs::write(folder.path().join("file"), "x").unwrap();
    let formats = "invalid output file: expected a name that ends in .png, .jpg or .webp, got";
    told(&folder.path().join("a.tiff"), &format!("{formats} F/a.tiff"));
    told(&folder.path().join("a"), &format!("{formats} F/a"));
    told(
        &folder.path().join("a.png"),
        "cannot access F/a.png: it is a folder, expected a file; name a file",
    );
    told(
        &folder.path().join("no/a.png"),
        "cannot access F/no: there is no such file or folder; check the path",
    );
    told(
        &folder.path().join("file/a.png"),
        "cannot access F/file/a.png: a part of the path is a file, expected a folder; check the path",
    );
    // WebP is limited to 16383 pixels on a side, which is only checked once the image exists.
    let path = folder.path().join("wide.webp");
    let text = sentence(&save_image(&image, &path, &[]).unwrap_err());
    let words = "at most 16383 pixels on a side for WebP; write a PNG, got 20000x1";
    assert_eq!(text, format!("invalid image size: expected {words}"));
    let error = encode_image(&image, kontext::image::ImageFormat::WebP, &[]).unwrap_err();
    assert_eq!(sentence(&error), text);
    let left: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[cfg(unix)]
#[test]
fn a_written_image_has_the_permissions_of_a_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |name: &str| {
        std::fs::metadata(folder.path().join(name))
            .unwrap()
            .permissions()
            .mode()
    };
    std::fs::write(folder.path().join("new"), "x").unwrap();
    save_image(&RgbImage::new(1, 1), folder.path().join("a.png"), &[]).unwrap();
    assert_eq!(mode("a.png"), mode("new"));
}
