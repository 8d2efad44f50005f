//! Adapters of linear layers, by the layers' names.

mod delta;
mod device_adapter;
mod linear_adapter;
mod set;
mod slot;
mod slots;

use std::collections::BTreeMap;

pub use linear_adapter::{DoraNorm, LinearAdapter};
pub use set::AdapterSet;
pub(crate) use slot::AdapterSlot;
pub(crate) use slots::ActiveAdapters;
pub use slots::AdapterSlots;

/// Adapters of linear layers, by the layers' names (without `.weight`).
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    layers: BTreeMap<String, Vec<LinearAdapter>>,
}

impl Adapters {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an adapter; several of one layer add up.
    pub fn add(&mut self, layer: impl Into<String>, adapter: LinearAdapter) {
        self.layers.entry(layer.into()).or_default().push(adapter);
    }

    /// Takes the adapters of another set, too.
    pub fn extend(&mut self, other: Self) {
        for (layer, adapters) in other.layers {
            self.layers.entry(layer).or_default().extend(adapters);
        }
    }

    /// The layers that have adapters.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.layers.keys().map(String::as_str)
    }

    /// The adapters of a layer.
    #[must_use]
    pub fn of(&self, layer: &str) -> &[LinearAdapter] {
        self.layers.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Returns `true` if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::noise;
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::{Linear, Weights};

    fn draw(shape: &[i64], seed: u64) -> Tensor {
        noise::randn(shape, seed, Kind::Float, Device::Cpu).unwrap()
    }

    /// Every form of adapter, one at a time and combined, for a layer [8, 6].
    fn cases() -> Vec<Vec<LinearAdapter>> {
        let low_rank = |start| LinearAdapter::low_rank(draw(&[2, 6], 1), draw(&[3, 2], 2), 0.5, start).unwrap();
        let whole = || LinearAdapter::low_rank(draw(&[1, 6], 3), draw(&[8, 1], 4), 2.0, 0).unwrap();
        let kronecker = || LinearAdapter::kronecker(&[draw(&[2, 3], 5)], vec![draw(&[4, 2], 6)], 0.7, 0).unwrap();
        let pair = |seed, shape: &[i64]| [draw(shape, seed), draw(shape, seed + 1)];
        let hadamard = || LinearAdapter::hadamard(pair(8, &[4, 2]), pair(10, &[2, 6]), 0.3, 3).unwrap();
        let lengths = |shape: &[i64]| draw(shape, 12).abs() + 0.5;
        let dora = |norm| whole().with_magnitude(&lengths(&[8, 1]), norm).unwrap().with_scale(0.6);
        let columns = || {
            kronecker()
                .with_magnitude(&lengths(&[1, 6]), DoraNorm::Lycoris)
                .unwrap()
                .with_scale(0.6)
        };
        let biased = || low_rank(5).with_bias(draw(&[3], 13), true).unwrap();
        vec![
            vec![low_rank(4), whole()],
            vec![kronecker(), LinearAdapter::full(draw(&[2, 6], 7), 1.5, 6).unwrap()],
            vec![hadamard(), biased(), LinearAdapter::of_bias(draw(&[4], 14), 2).unwrap()],
            vec![dora(DoraNorm::Peft), whole()],
            vec![low_rank(0), dora(DoraNorm::Lycoris)],
            vec![columns(), low_rank(1)],
        ]
    }

    fn by_layer(adapters: &[LinearAdapter]) -> Adapters {
        let mut all = Adapters::new();
        adapters.iter().for_each(|adapter| all.add("a.b", adapter.clone()));
        all
    }

    fn weights() -> Weights {
        let tensors = [
            ("a.b.weight".to_owned(), draw(&[8, 6], 15)),
            ("a.b.bias".to_owned(), draw(&[8], 16)),
        ];
        Weights::from_tensors(tensors)
    }

    fn layer(weights: &Weights, adapters: &[LinearAdapter], fused: bool) -> Linear {
        if fused {
            return Linear::new(&weights.clone().fused(by_layer(adapters)).at("a.b"), 6, 8).unwrap();
        }
        let (weights, slots) = weights.with_slots();
        let layer = Linear::new(&weights.at("a.b"), 6, 8).unwrap();
        slots.set(&by_layer(adapters)).unwrap();
        layer
    }

    #[test]
    fn fused_and_unfused_layers_agree_in_every_way_of_calling_them() {
        let (x, sum) = (draw(&[2, 5, 6], 17), draw(&[2, 5, 8], 18));
        let close = |a: &Tensor, b: &Tensor| assert!(a.allclose(b, 1e-4, 1e-5, false));
        let plain = Linear::new(&weights().at("a.b"), 6, 8).unwrap().forward(&x).unwrap();
        for adapters in cases() {
            let expected = layer(&weights(), &adapters, true).forward(&x).unwrap();
            let beside = || layer(&weights(), &adapters, false);
            assert!((&expected - &plain).abs().max().double_value(&[]) > 0.1);
            close(&expected, &beside().forward(&x).unwrap());
            close(&expected.narrow(-1, 3, 4), &beside().forward_rows(&x, 3, 4).unwrap());
            close(&(&expected + &sum), &beside().forward_add(&x, &sum).unwrap());
            close(&(&expected + &sum), &beside().accumulate(&x, sum.copy()).unwrap());
            let joint = draw(&[2, 7, 4], 19);
            beside().forward_to(&x, 3..7, &joint.narrow(1, 2, 5)).unwrap();
            close(&expected.narrow(-1, 3, 4), &joint.narrow(1, 2, 5));
            close(
                &expected.narrow(-1, 3, 4).gelu("tanh"),
                &beside().forward_gelu(&x, 3..7).unwrap(),
            );
            let (first, second) = beside().split_input(3).unwrap();
            let part = first.forward(&x.narrow(-1, 0, 3)).unwrap();
            close(&expected, &second.forward_add(&x.narrow(-1, 3, 3), &part).unwrap());
        }
    }

    #[test]
    fn changes_are_replaced_and_removed_to_the_bit() {
        let (weights, slots) = weights().with_slots();
        let linear = Linear::new(&weights.at("a.b"), 6, 8).unwrap();
        let x = draw(&[5, 6], 17);
        let plain = linear.forward(&x).unwrap();
        for adapters in cases() {
            slots.set(&by_layer(&adapters)).unwrap();
            assert_eq!(
                linear.forward(&x).unwrap(),
                layer(&weights, &adapters, false).forward(&x).unwrap()
            );
        }
        // A set of which a part does not fit changes nothing.
        let mut wrong = by_layer(&cases()[0]);
        wrong.add("a.c", LinearAdapter::of_bias(draw(&[2], 1), 0).unwrap());
        let before = linear.forward(&x).unwrap();
        let error = slots.set(&wrong).unwrap_err().to_string();
        assert_eq!(
            error,
            "invalid layer of an adapter: expected a linear layer of the model (nearest: `a.b`), got a.c"
        );
        assert_eq!(linear.forward(&x).unwrap(), before);
        slots.set(&Adapters::new()).unwrap();
        assert_eq!(linear.forward(&x).unwrap(), plain);
    }

    #[test]
    fn narrow_weights_that_compute_in_f32_do_not_round_what_is_fused() {
        let tensors = || {
            [
                ("a.b.weight".to_owned(), draw(&[8, 6], 5).to_kind(Kind::BFloat16)),
                ("a.b.bias".to_owned(), draw(&[8], 6)),
            ]
        };
        let narrow = Weights::from_tensors(tensors()).at_most(Kind::Float);
        let (x, adapters) = (draw(&[5, 6], 7), &cases()[0]);
        let [fused, beside] = [true, false].map(|fused| layer(&narrow, adapters, fused).forward(&x).unwrap());
        assert!(fused.allclose(&beside, 1e-5, 1e-5, false));
    }

    #[test]
    fn gradients_reach_both_factors() {
        let leaf = |shape: &[i64], seed| draw(shape, seed).set_requires_grad(true);
        let (down, up) = (leaf(&[2, 6], 1), leaf(&[3, 2], 2));
        let adapter = LinearAdapter::low_rank(down.shallow_clone(), up.shallow_clone(), 0.5, 4).unwrap();
        let x = draw(&[5, 6], 7);
        layer(&weights(), &[adapter], false)
            .forward(&x)
            .unwrap()
            .sum(Kind::Float)
            .backward();
        let expected =
            x.linear(&down.detach(), None::<&Tensor>)
                .sum_dim_intlist([0_i64].as_slice(), false, Kind::Float);
        assert!(up.grad().get(1).allclose(&(expected * 0.5), 1e-4, 1e-5, false));
        assert!(down.grad().abs().max().double_value(&[]) > 0.0);
    }

    #[test]
    fn a_change_of_another_width_is_refused() {
        let adapters = by_layer(&[LinearAdapter::low_rank(draw(&[2, 5], 1), draw(&[3, 2], 2), 1.0, 0).unwrap()]);
        let error = Linear::new(&weights().fused(adapters.clone()).at("a.b"), 6, 8).unwrap_err();
        assert!(error.to_string().starts_with("adapter: expected shape"), "{error}");
        let (weights, slots) = weights().with_slots();
        let _layer = Linear::new(&weights.at("a.b"), 6, 8).unwrap();
        assert_eq!(slots.set(&adapters).unwrap_err().to_string(), error.to_string());
    }
}
