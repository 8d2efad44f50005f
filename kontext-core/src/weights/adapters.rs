//! Low-rank changes that go with weights: kept beside them, or added to them as they are read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tch::{Kind, Tensor};

use super::{Conversion, Weights, lock};
use crate::nn::LowRank;
use crate::{Error, Result};

/// Changes of linear layers, by the layers' names (without `.weight`).
#[derive(Debug, Default)]
pub struct Adapters {
    layers: BTreeMap<String, Vec<LowRank>>,
    fused: bool,
}

impl Adapters {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a change; several of one layer add up.
    pub fn add(&mut self, layer: impl Into<String>, change: LowRank) {
        self.layers.entry(layer.into()).or_default().push(change);
    }

    /// Takes the changes of another set, too.
    pub fn extend(&mut self, other: Self) {
        for (layer, changes) in other.layers {
            self.layers.entry(layer).or_default().extend(changes);
        }
    }

    /// Whether the changes are added to the weights as they are read, which leaves nothing to do when
    /// the model runs, and rounds them to the kind that it computes in. Default: kept beside the weights.
    #[must_use]
    pub fn fused(self, fused: bool) -> Self {
        Self { fused, ..self }
    }

    /// The layers that change.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

impl Weights {
    /// The same weights with changes of linear layers, which replace changes that were set before.
    #[must_use]
    pub fn adapted(self, adapters: Adapters) -> Self {
        Self { adapters: Some(Arc::new(Mutex::new(adapters))), ..self }
    }

    /// The changes that a layer at the cursor has to add to its output: none where they are fused.
    pub(crate) fn low_rank(&self, input: i64, output: i64) -> Result<Vec<LowRank>> {
        let Some(adapters) = self.adapters.as_deref().map(lock).filter(|a| !a.fused) else { return Ok(Vec::new()) };
        let changes = adapters.layers.get(self.prefix.trim_end_matches('.')).map_or(&[][..], Vec::as_slice);
        let placed = |change: &LowRank| {
            fits(change, &[output, input])?;
            change.to_device(self.device)
        };
        changes.iter().map(placed).collect()
    }

    /// Whether there are changes to be fused with this tensor.
    pub(super) fn fuses(&self, full: &str) -> bool {
        let Some(adapters) = self.adapters.as_deref().map(lock).filter(|a| a.fused) else { return false };
        full.strip_suffix(".weight").is_some_and(|layer| adapters.layers.contains_key(layer))
    }

    /// A tensor with the changes that are to be fused with it.
    pub(super) fn fuse(&self, full: &str, value: Tensor) -> Result<Tensor> {
        let Some(adapters) = self.adapters.as_deref().map(lock).filter(|a| a.fused) else { return Ok(value) };
        let changes = full.strip_suffix(".weight").and_then(|layer| adapters.layers.get(layer));
        let Some(changes) = changes else { return Ok(value) };
        // Narrow weights that compute in a wide kind become wide, rather than round what is added.
        let kind = match self.kind {
            Conversion::Keep => value.kind(),
            Conversion::To(kind) | Conversion::AtMost(kind) => kind,
        };
        // A copy, never the file's or another model's values.
        let wide = value.f_to_dtype(Kind::Float, false, true)?;
        for change in changes {
            fits(change, &value.size())?;
            change.to_device(self.device)?.fuse_into(&wide)?;
        }
        Ok(wide.f_to_kind(kind)?)
    }
}

fn fits(change: &LowRank, weight: &[i64]) -> Result<()> {
    match weight {
        [rows, input] if *input == change.input() && change.rows().end <= *rows => Ok(()),
        _ => {
            let got = vec![change.rows().end, change.input()];
            Err(Error::Shape { tensor: "low-rank change", expected: "[at most out, in] of its linear layer", got })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Linear;
    use crate::{Device, noise};

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
    }

    fn adapters() -> Adapters {
        let mut adapters = Adapters::new();
        adapters.add("a.b", LowRank::new(draw(&[2, 6], 1), draw(&[3, 2], 2), 0.5, 4).unwrap());
        adapters.add("a.b", LowRank::new(draw(&[1, 6], 3), draw(&[8, 1], 4), 2.0, 0).unwrap());
        adapters
    }

    fn weights() -> Weights {
        let tensors = [("a.b.weight".to_owned(), draw(&[8, 6], 5)), ("a.b.bias".to_owned(), draw(&[8], 6))];
        Weights::from_tensors(tensors)
    }

    #[test]
    fn fused_and_unfused_layers_agree_in_every_way_of_calling_them() {
        let layer =
            |fused: bool| Linear::new(&weights().adapted(adapters().fused(fused)).at("a").at("b"), 6, 8).unwrap();
        let x = draw(&[2, 5, 6], 7);
        let (fused, beside) = (layer(true), layer(false));
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-5, 1e-5, false));
        let expected = fused.forward(&x).unwrap();
        let plain = Linear::new(&weights().at("a").at("b"), 6, 8).unwrap().forward(&x).unwrap();
        assert!((&expected - &plain).abs().max().double_value(&[]) > 0.1);
        close(&expected, &beside.forward(&x).unwrap());
        close(&expected.narrow(-1, 3, 4), &beside.forward_rows(&x, 3, 4).unwrap());
        let sum = draw(&[2, 5, 8], 8);
        close(&(&expected + &sum), &beside.forward_add(&x, &sum).unwrap());
        let (first, second) = layer(false).split_input(2).unwrap();
        let part = first.forward(&x.narrow(-1, 0, 2)).unwrap();
        close(&expected, &second.forward_add(&x.narrow(-1, 2, 4), &part).unwrap());
    }

    #[test]
    fn narrow_weights_that_compute_in_f32_do_not_round_what_is_fused() {
        let narrow = || {
            let tensors = [("a.b.weight".to_owned(), draw(&[8, 6], 5).to_kind(Kind::BFloat16))];
            Weights::from_tensors(tensors).at_most(Kind::Float)
        };
        let layer = |fused: bool| {
            Linear::without_bias(&narrow().adapted(adapters().fused(fused)).at("a").at("b"), 6, 8).unwrap()
        };
        let x = draw(&[5, 6], 7);
        assert!(layer(true).forward(&x).unwrap().allclose(&layer(false).forward(&x).unwrap(), 1e-5, 1e-5, false));
    }

    #[test]
    fn gradients_reach_both_factors() {
        let leaf = |shape: &[i64], seed| draw(shape, seed).set_requires_grad(true);
        let (down, up) = (leaf(&[2, 6], 1), leaf(&[3, 2], 2));
        let mut adapters = Adapters::new();
        adapters.add("a.b", LowRank::new(down.shallow_clone(), up.shallow_clone(), 0.5, 4).unwrap());
        let layer = Linear::new(&weights().adapted(adapters).at("a").at("b"), 6, 8).unwrap();
        let x = draw(&[5, 6], 7);
        layer.forward(&x).unwrap().sum(Kind::Float).backward();
        let expected =
            x.linear(&down.detach(), None::<&Tensor>).sum_dim_intlist([0_i64].as_slice(), false, Kind::Float);
        assert!(up.grad().get(1).allclose(&(expected * 0.5), 1e-4, 1e-5, false));
        assert!(down.grad().abs().max().double_value(&[]) > 0.0);
    }

    #[test]
    fn a_change_of_another_width_is_refused() {
        let mut adapters = Adapters::new();
        adapters.add("a.b", LowRank::new(draw(&[2, 5], 1), draw(&[3, 2], 2), 1.0, 0).unwrap());
        let error = Linear::new(&weights().adapted(adapters).at("a").at("b"), 6, 8).unwrap_err();
        assert!(error.to_string().contains("low-rank change"), "{error}");
    }
}
