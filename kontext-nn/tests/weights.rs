//! Reading of weights: dtypes, naming schemes, accounts and audits.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

use std::error::Error as _;

use kontext_core::{Device, Kind, Tensor};
use kontext_formats::{TensorMap, save};
use kontext_nn::Weights;

fn file(tensors: &[(&str, Tensor)]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(n, t)| ((*n).to_owned(), t.shallow_clone()))
        .collect();
    save(&path, &tensors, None).unwrap();
    (folder, path)
}

#[test]
fn every_dtype_reads_as_the_value_that_was_written() {
    // 1.5 and -0.25 are exact in all of them, fp8 included.
    let values = Tensor::from_slice(&[1.5_f32, -0.25]);
    for kind in [
        Kind::Double,
        Kind::Float,
        Kind::Half,
        Kind::BFloat16,
        Kind::Float8e4m3fn,
        Kind::Float8e5m2,
    ] {
        let (_folder, path) = file(&[("x", values.to_kind(kind))]);
        let weights = Weights::open(&path).unwrap();
        assert_eq!(weights.raw("x").unwrap().kind(), kind);
        let read = weights.kind(Kind::Float).tensor("x", &[2]).unwrap();
        assert!(read.equal(&values), "{kind:?}");
    }
}

#[test]
fn at_most_keeps_narrow_tensors_narrow() {
    let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
    let (_folder, path) = file(&[
        ("wide", one.to_kind(Kind::Double)),
        ("same", one.to_kind(Kind::Half)),
        ("narrow", one.to_kind(Kind::Float8e5m2)),
    ]);
    let weights = Weights::open(path).unwrap().at_most(Kind::BFloat16);
    let kind = |name| weights.tensor(name, &[1]).unwrap().kind();
    assert_eq!(
        [kind("wide"), kind("same"), kind("narrow")],
        [Kind::BFloat16, Kind::BFloat16, Kind::Float8e5m2]
    );
}

#[test]
fn names_are_translated_rows_joined_and_halves_exchanged() {
    let row = |value: f32| Tensor::from_slice(&[value]).reshape([1, 1]);
    let (_folder, path) = file(&[
        ("q", row(1.0)),
        ("k", row(2.0)),
        ("mod", Tensor::cat(&[row(3.0), row(4.0)], 0)),
    ]);
    let map = |name: &str| match name {
        "qk" => TensorMap::Rows(vec!["q".to_owned(), "k".to_owned()]),
        other => TensorMap::SwapHalves(other.to_owned()),
    };
    let weights = Weights::open(path).unwrap().named(map);
    let read = |name: &str| Vec::<f32>::try_from(weights.tensor(name, &[2, 1]).unwrap().reshape([-1])).unwrap();
    assert_eq!(read("qk"), [1.0, 2.0]);
    assert_eq!(read("mod"), [4.0, 3.0]);
    weights.finish().unwrap();
}

#[test]
fn what_is_wrong_is_named_one_by_one_or_all_at_once() {
    let (_folder, path) = file(&[
        ("block.norm.weight", Tensor::ones([3], (Kind::Float, Device::Cpu))),
        ("block.extra", Tensor::ones([1], (Kind::Float, Device::Cpu))),
        ("block.table", Tensor::ones([2], (Kind::Int64, Device::Cpu))),
    ]);
    let weights = Weights::open(path).unwrap();
    let cause = |result: kontext_core::Result<Tensor>| result.unwrap_err().source().unwrap().to_string();
    let block = weights.at("block");
    let missing = cause(block.tensor("norm.weigth", &[3]));
    assert!(
        missing.starts_with("no tensor `block.norm.weigth` (nearest: `block.norm.weight`)"),
        "{missing}"
    );
    assert!(cause(block.tensor("norm.weight", &[4])).contains("has shape [3], the configuration asks for [4]"));
    assert!(cause(block.tensor("table", &[2])).contains("`block.table` has dtype Int64"));
    let unused = weights.finish().unwrap_err().source().unwrap().to_string();
    assert!(
        unused.starts_with("1 tensor that the model does not know: `block.extra`"),
        "{unused}"
    );

    let audit = weights.audited();
    let _ = audit.tensor("missing", &[1]).unwrap();
    let _ = audit.at("block").tensor("norm.weight", &[4]).unwrap();
    assert_eq!(audit.problems().len(), 2);
    weights.ignore(|name| name == "block.extra");
    weights.finish().unwrap();
}

#[test]
fn a_damaged_tensor_is_found_by_name() {
    let good = Tensor::ones([4], (Kind::BFloat16, Device::Cpu));
    let bad = Tensor::from_slice(&[1.0_f32, f32::NAN]).to_kind(Kind::BFloat16);
    let (_folder, path) = file(&[("a", good.shallow_clone()), ("b", bad), ("c", good)]);
    assert_eq!(
        Weights::open(path)
            .unwrap()
            .store()
            .first_not_finite()
            .unwrap()
            .as_deref(),
        Some("b")
    );
}
