//! Damaged or hostile weight files: an error message, never a panic, and no more memory than the size of the
//! file.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::error::Error as _;
use std::path::{Path, PathBuf};

use kontext_core::{Error, Tensor};
use kontext_nn::Weights;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Builds a whole file: a header and its data.
fn file(header: &Value, data: usize) -> Vec<u8> {
    let header = header.to_string().into_bytes();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 0x3f);
    bytes
}

fn two_tensors() -> Vec<u8> {
    let a = json!({ "dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24] });
    let b = json!({ "dtype": "BF16", "shape": [4], "data_offsets": [24, 32] });
    file(
        &json!({ "a.weight": a, "b.bias": b, "__metadata__": { "format": "pt" } }),
        32,
    )
}

fn written(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// Performs every operation on a file.
fn explore(bytes: &[u8]) -> kontext_core::Result<()> {
    let (_folder, path) = written(bytes);
    let weights = Weights::open(path)?;
    assert!(weights.store().account().bytes <= bytes.len() as u64);
    let _ = (weights.store().metadata(), weights.shapes());
    for name in weights.names() {
        let shape = weights.shape_of(&name).unwrap();
        // Tensors of dtypes that libtorch does not know are refused.
        if let Ok(tensor) = weights.raw(&name) {
            assert_eq!(tensor.size(), shape);
        }
        let _ = weights.tensor(&name, &shape);
        let _ = weights.audited().tensor(&name, &[1]);
    }
    weights.store().first_not_finite().map(drop)
}

/// Returns the whole message of a refusal, without the file's own path.
fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = written(bytes);
    let error = Weights::open(&path).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot load {}", path.display()));
    error.source().unwrap().to_string()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_file_with_any_bytes_changed_is_read_or_refused(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = two_tensors();
        for (index, byte) in changes {
            let len = bytes.len();
            bytes[index.index(len)] = byte;
        }
        let _ = explore(&bytes);
    }

    #[test]
    fn a_file_cut_anywhere_is_refused(end in 0..two_tensors().len()) {
        let error = explore(&two_tensors()[..end]).unwrap_err();
        prop_assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
    }

    #[test]
    fn a_file_with_bytes_added_is_refused(more in prop::collection::vec(any::<u8>(), 1..40)) {
        let error = explore(&[two_tensors(), more].concat()).unwrap_err();
        prop_assert!(matches!(error, Error::Checkpoint { .. }), "{error:?}");
    }

    #[test]
    fn any_shapes_and_offsets_are_read_or_refused(
        tensors in prop::collection::vec((0..5_usize, prop::collection::vec(size(), 0..4), size(), size()), 0..5),
        data in 0..64_usize,
    ) {
        const DTYPES: [&str; 5] = ["F32", "U8", "F4", "F8_E8M0", "C64"];
        let header: serde_json::Map<_, _> = tensors.into_iter().enumerate().map(|(index, (dtype, shape, start, end))| {
            (format!("t{index}"), json!({ "dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end] }))
        }).collect();
        let _ = explore(&file(&Value::Object(header), data));
    }

    #[test]
    fn any_header_of_any_length_is_read_or_refused(length in any::<u64>(), text in ".{0,60}") {
        let _ = explore(&[&length.to_le_bytes()[..], text.as_bytes()].concat());
        let _ = explore(&[&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat());
    }
}

/// Generates sizes, including those at which sums and products overflow.
fn size() -> impl Strategy<Value = u64> {
    let edge = |v: u64| prop_oneof![Just(v), Just(v - 1), Just(v.wrapping_add(1))];
    prop_oneof![
        0..9_u64,
        edge(1 << 31),
        edge(1 << 32),
        edge(1 << 61),
        edge(1 << 63),
        edge(u64::MAX)
    ]
}

#[test]
fn a_header_whose_offsets_add_up_to_two_to_the_64_is_refused() {
    let side = (1_u64 << 61) - 1;
    let tensor = |i: u64| {
        let value = json!({ "dtype": "U8", "shape": [side], "data_offsets": [i * side, (i + 1) * side] });
        (format!("t{i}"), value)
    };
    let header = Value::Object((0..8).map(tensor).collect());
    assert!(refusal(&file(&header, 8)).contains("not a valid safetensors file: tensor `t"));
}

#[test]
fn what_is_wrong_with_a_header_is_told_in_numbers() {
    let again = "it may be truncated or damaged, fetch it again";
    let says = |bytes: &[u8], words: &str| {
        assert_eq!(
            refusal(bytes),
            format!("not a valid safetensors file: {words}; {again}")
        );
    };
    let whole = two_tensors();
    let size = whole.len();
    says(
        &whole[..size - 5],
        &format!("its header describes {size} bytes, the file has {}", size - 5),
    );
    says(&whole[..3], "it has 3 bytes, fewer than a header");
    says(&[], "it has 0 bytes, fewer than a header");
    let header = u64::from_le_bytes(*whole.first_chunk().unwrap());
    says(
        &whole[..20],
        &format!("its header would have {header} bytes, the file has 20"),
    );
    let long = [&200_000_000_u64.to_le_bytes()[..], b"{}"].concat();
    says(&long, "its header would have 200000000 bytes, the most is 100000000");

    let tensor = |dtype: &str, shape: &[u64], start: u64, end: u64| {
        let value = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] });
        file(
            &json!({ "a": { "dtype": "U8", "shape": [4], "data_offsets": [0, 4] }, "b": value }),
            8,
        )
    };
    says(
        &tensor("U8", &[9], 4, 8),
        "tensor `b` of U8 has shape [9], which does not fit its bytes 4..8",
    );
    says(
        &tensor("U8", &[4], 8, 4),
        "tensor `b` of U8 has shape [4], which does not fit its bytes 8..4",
    );
    says(
        &tensor("F4", &[3], 4, 5),
        "tensor `b` of F4 has shape [3], which does not fit its bytes 4..5",
    );
    let most = "expected at most 2147483648 a side and 2^63 in all";
    for sides in [&[1 << 63, 4][..], &[1 << 31, 1 << 31, 2], &[1 << 31, 1 << 31, 2, 0]] {
        says(
            &tensor("U8", sides, 4, 8),
            &format!("tensor `b` has shape {sides:?}, {most}"),
        );
    }
    says(
        &tensor("U8", &[6], 2, 8),
        "its header is wrong: invalid offset for tensor `b`",
    );
    let twice =
        br#"{"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}"#;
    let twice = [&(twice.len() as u64).to_le_bytes()[..], twice, b"1"].concat();
    // The column is up to the parser.
    let text = refusal(&twice);
    assert!(
        text.contains("its header is wrong: tensor `a` is there twice at line 1 column "),
        "{text}"
    );
    let says = |bytes: &[u8], words: &str| {
        let text = refusal(bytes);
        assert!(
            text.starts_with(&format!("not a valid safetensors file: its header is wrong: {words}")),
            "{text}"
        );
        assert!(text.ends_with(again), "{text}");
    };
    says(&tensor("F31", &[1], 4, 8), "unknown variant `F31`");
    says(
        &file(
            &json!({ "a": { "dtype": "U8", "shape": [-1], "data_offsets": [0, 1] } }),
            1,
        ),
        "invalid",
    );
    says(&file(&json!([1, 2]), 0), "invalid");
}

#[test]
fn files_that_are_often_found_in_place_of_weights_are_called_by_their_name() {
    for (bytes, words) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"[..],
            "a Git LFS pointer; run `git lfs pull`",
        ),
        (
            b"PK\x03\x04\x14\0\x06\0\x08\0\0\0",
            "a PyTorch or zip file; take the safetensors",
        ),
        (
            b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
            "a PyTorch pickle; take the safetensors",
        ),
        (b"<!DOCTYPE html>", "a web page; fetch the file again, signed in"),
        (
            b"{\"error\":\"Access to model is restricted\"}",
            "a server's error message; fetch the file again",
        ),
    ] {
        let text = refusal(bytes);
        assert!(
            text.starts_with(&format!("not a safetensors file but {words}")),
            "{text}"
        );
    }
}

#[test]
fn a_path_without_weights_is_named_with_what_was_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let cause = |path: &Path| {
        let error = Weights::open(path).unwrap_err();
        assert!(error.to_string().ends_with(&path.display().to_string()), "{error}");
        error.source().unwrap().to_string()
    };
    assert_eq!(
        cause(folder.path()),
        "no weights found; looked for diffusion_pytorch_model.safetensors.index.json, \
         diffusion_pytorch_model.safetensors, model.safetensors.index.json, model.safetensors, \
         their variants bf16, fp16, fp32, or one file of weights; fetch what is missing or name another path"
    );
    assert_eq!(
        cause(&folder.path().join("none")),
        "there is no such file or folder; check the path"
    );
    let index = folder.path().join("model.safetensors");
    std::fs::create_dir(&index).unwrap();
    assert!(cause(folder.path()).starts_with("no weights found"));
}

/// Creates a folder with two shards, `x` and `y` in the first, `x` and `z` in the second, and this index.
fn sharded(index: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors = |names: &[(&str, f32)]| {
        names
            .iter()
            .map(|(n, v)| ((*n).to_owned(), Tensor::from_slice(&[*v])))
            .collect::<Vec<_>>()
    };
    kontext_formats::save(
        folder.path().join("model-1.safetensors"),
        &tensors(&[("x", 1.0), ("y", 2.0)]),
        None,
    )
    .unwrap();
    kontext_formats::save(
        folder.path().join("model-2.safetensors"),
        &tensors(&[("x", -1.0), ("z", 3.0)]),
        None,
    )
    .unwrap();
    let path = folder.path().join("model.safetensors.index.json");
    std::fs::write(path, json!({ "weight_map": index }).to_string()).unwrap();
    folder
}

#[test]
fn a_tensor_is_read_from_the_shard_that_the_index_names() {
    for (shard, expected) in [("model-1.safetensors", 1.0), ("model-2.safetensors", -1.0)] {
        let folder = sharded(&json!({ "x": shard, "y": "model-1.safetensors", "z": "model-2.safetensors" }));
        let weights = Weights::open(folder.path()).unwrap();
        assert_eq!(weights.names(), ["x", "y", "z"]);
        assert_eq!(weights.tensor("x", &[1]).unwrap().double_value(&[0]), expected);
    }
}

#[test]
fn an_index_that_its_shards_do_not_fit_is_refused() {
    let refused = |index: &Value, words: &str| {
        let folder = sharded(index);
        let error = Weights::open(folder.path()).unwrap_err();
        let cause = error.source().unwrap().to_string();
        assert!(error.to_string().ends_with("model.safetensors.index.json"), "{error}");
        assert!(cause.contains(words), "{cause}");
    };
    refused(
        &json!({ "x": "model-3.safetensors" }),
        "no shard found; looked for `model-3.safetensors`, which the index names; fetch what is missing",
    );
    refused(
        &json!({ "x": "model-1.safetensors", "y": "model-2.safetensors" }),
        "shard `model-2.safetensors` lacks the tensor `y` that its index names; fetch both again",
    );
    for escape in [
        "../model-1.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".",
        "",
        "model-1.safetensors/",
    ] {
        refused(
            &json!({ "x": escape }),
            &format!("shard `{escape}` is not a plain file name; fetch the index again"),
        );
    }
    refused(&json!([1]), "invalid type: sequence, expected a map");
    let folder = sharded(&json!({}));
    std::fs::write(folder.path().join("model.safetensors.index.json"), "{\"weight_map\":").unwrap();
    let error = Weights::open(folder.path()).unwrap_err().source().unwrap().to_string();
    assert!(
        error.contains("EOF while parsing") && error.ends_with("correct it or fetch it again"),
        "{error}"
    );
}
