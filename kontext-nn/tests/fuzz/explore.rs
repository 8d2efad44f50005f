//! Every operation on a weight file.

use std::path::Path;

use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_nn::{Embedding, Linear, Offload, Weights};

use crate::common::chain;

/// Longest side of a layer to be multiplied: a side takes no space in the file if the other is 0.
const LONGEST: i64 = 1 << 14;

/// Opens a file; any error must be one of the checkpoint.
pub(crate) fn open(path: &Path) -> Option<Weights> {
    said(Weights::open(path))
}

/// Returns the result of a call; any error must be one of the checkpoint.
fn said<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error @ Error::Checkpoint { .. }) => {
            assert!(chain(&error).len() > 20);
            None
        }
        Err(error) => panic!("not an error of the checkpoint: {}", chain(&error)),
    }
}

/// Reads everything, in every way.
pub(crate) fn read(weights: &Weights, file: u64) {
    let account = weights.store().account();
    assert!(account.bytes <= file, "{account:?} in a file of {file} bytes");
    let names = weights.names();
    assert_eq!(
        (
            names.len(),
            weights.shapes().len(),
            weights.store().stored_sizes().len()
        ),
        (account.tensors, names.len(), names.len())
    );
    let _ = (
        weights.store().metadata(),
        weights.clone().part(&["bias", "weight"]).names(),
    );
    let audit = weights.audited();
    for name in &names {
        let shape = weights.shape_of(name).unwrap();
        let raw = said(weights.raw(name));
        if let Some(raw) = &raw {
            assert_eq!(raw.size(), shape);
        }
        let _ = said(weights.tensor(name, &shape));
        let _ = said(
            weights
                .clone()
                .kind(Kind::BFloat16)
                .tensor(name, &[&shape[..], &[2]].concat()),
        );
        let _ = audit.tensor(name, &[1]).unwrap();
        layers(weights, name, &shape, raw.as_ref());
    }
    let _ = said(weights.tensor("layer.weigth", &[1]));
    let _ = audit.tensor("layer.weigth", &[1]).unwrap();
    let _ = audit.problems();
    let _ = said(weights.store().first_not_finite());
    let _ = said(weights.finish());
}

/// Reads a tensor as the weight of a layer, in memory and left in the file.
fn layers(weights: &Weights, name: &str, shape: &[i64], raw: Option<&Tensor>) {
    let sides: Vec<i64> = shape.iter().copied().filter(|&side| side != 1).collect();
    let (output, input) = match (shape, sides.as_slice()) {
        ([output, input], _) | (_, [output, input]) => (*output, *input),
        (_, [input]) => (1, *input),
        _ => (1, 1),
    };
    if output > LONGEST || input > LONGEST {
        return;
    }
    let only = weights
        .clone()
        .at_most(Kind::Float)
        .renamed(|other| (other == name).then(|| "weight".to_owned()));
    let placed = |left| only.clone().offload(left);
    let _ = said(Linear::without_bias(&placed(Offload::None), output, input));
    let _ = said(Linear::without_bias(&placed(Offload::All), input + 1, output));
    let outputs = [Offload::None, Offload::All].map(|left| {
        let linear = said(Linear::without_bias(&placed(left), input, output))?;
        Some(multiply(&linear, input, output))
    });
    let [held, left] = &outputs;
    assert_eq!(held.is_some(), left.is_some(), "{name}");
    if let (Some(held), Some(left)) = (held, left) {
        assert!(
            held.allclose(left, 0.0, 0.0, true),
            "{name}: held and left in the file differ"
        );
        let raw = raw
            .unwrap()
            .to_kind(Kind::Float)
            .reshape([output, input])
            .transpose(0, 1);
        if raw.isfinite().all().int64_value(&[]) == 1 && input <= IDENTITY {
            assert!(
                held.allclose(&raw, 0.0, 0.0, false),
                "{name}: the product and the values differ"
            );
        }
    }
    if let Some(table) = said(Embedding::new(&placed(Offload::None), output, input)) {
        let rows = table.forward(&Tensor::from_slice(&[0_i64, output - 1]), Kind::Float);
        assert_eq!(rows.is_ok(), output > 0);
        // A table without columns has nothing to look up.
        assert!(input == 0 || table.forward(&Tensor::from_slice(&[output]), Kind::Float).is_err());
    }
}

/// Largest number of columns of a layer multiplied by the identity, whose products are exact.
const IDENTITY: i64 = 300;

/// Returns the layer's output for the identity, or for the identity's first row.
fn multiply(linear: &Linear, input: i64, output: i64) -> Tensor {
    let options = (Kind::Float, Device::Cpu);
    let x = if input <= IDENTITY {
        Tensor::eye(input, options)
    } else {
        Tensor::eye_m(1, input, options)
    };
    let y = linear.forward(&x).unwrap();
    let rows = linear.forward_rows(&x, output / 2, output - output / 2).unwrap();
    assert!(rows.allclose(&y.narrow(-1, output / 2, output - output / 2), 0.0, 0.0, true));
    assert!(linear.forward_rows(&x, output, 1).is_err());
    let sum = linear.forward_add(&x, &Tensor::zeros(y.size(), options)).unwrap();
    assert!(sum.allclose(&y, 0.0, 0.0, true));
    let at = input / 3;
    let (first, second) = linear.split_input(at).unwrap();
    let part = first.forward(&x.narrow(-1, 0, at)).unwrap();
    let whole = second.forward_add(&x.narrow(-1, at, input - at), &part).unwrap();
    assert_eq!(whole.size(), y.size());
    y
}
