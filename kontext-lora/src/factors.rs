//! Tensors of one layer, and the adapters built from them.
//!
//! Source: KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/modules/{locon,lokr,loha,full}.py`; huggingface/peft 0.21
//! `src/peft/tuners/{lora,lokr,loha}/layer.py`.

use std::collections::BTreeMap;

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_nn::LinearAdapter;

use crate::key::Key;
use crate::leaf::Leaf;
use crate::scaling::Scaling;

/// Form of a layer's adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LoraForm {
    /// Low-rank product `up @ down`.
    LowRank,
    /// DoRA: any other form, with magnitudes of the rows.
    Dora,
    /// LoKr: Kronecker product.
    LoKr,
    /// LoHa: Hadamard product of two low-rank products.
    LoHa,
    /// Full difference of a matrix or a bias.
    Full,
}

impl std::fmt::Display for LoraForm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::LowRank => "LoRA",
            Self::Dora => "DoRA",
            Self::LoKr => "LoKr",
            Self::LoHa => "LoHa",
            Self::Full => "full",
        })
    }
}

/// The tensors of one layer.
#[derive(Debug)]
pub(super) struct AdapterFactors {
    key: Key,
    tensors: BTreeMap<Leaf, (String, Tensor)>,
}

/// Adapters built from a layer's tensors.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) adapters: Vec<(LoraForm, LinearAdapter)>,
    /// Names of tensors whose counterparts are missing.
    pub(super) left: Vec<String>,
    /// Names of used tensors that hold NaN or infinity, in f32.
    pub(super) not_finite: Vec<String>,
}

impl AdapterFactors {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            tensors: BTreeMap::new(),
        }
    }

    /// Returns `true` if the factor is there.
    pub(super) fn has(&self, leaf: Leaf) -> bool {
        self.tensors.contains_key(&leaf)
    }

    /// Adds a tensor.
    pub(super) fn insert(&mut self, leaf: Leaf, name: String, tensor: Tensor) {
        self.tensors.insert(leaf, (name, tensor));
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Builds the adapters, for a layer that starts at row 0.
    pub(super) fn build(mut self, scaling: &Scaling) -> Result<Built> {
        let mut not_finite = Vec::new();
        for (name, tensor) in self.tensors.values() {
            if !is_finite(tensor)? {
                not_finite.push(name.clone());
            }
        }
        let alpha = match self.tensors.remove(&Leaf::Alpha) {
            Some((name, alpha)) if alpha.numel() == 1 => Some((name, alpha.f_flatten(0, -1)?.f_double_value(&[0])?)),
            Some((name, alpha)) => return Err(Error::invalid("alpha of a LoRA", "one number", shape(&name, &alpha))),
            None => None,
        };
        let (target, module) = (self.key.layer.target, self.key.layer.module.clone());
        let scale = |rank: Option<i64>| match (&alpha, rank) {
            (Some((_, alpha)), Some(rank)) => alpha / rank as f64,
            // LyCORIS: two full matrices already include the scale.
            (Some(_), None) => 1.0,
            (None, rank) => scaling.scale(target, &module, rank.map(|rank| rank as f64)),
        };
        let rank = |factor: &Tensor| factor.size().first().copied();
        let mut adapters = Vec::new();
        if let Some([down, up]) = self.take([Leaf::Down, Leaf::Up])? {
            adapters.push((
                LoraForm::LowRank,
                LinearAdapter::low_rank(down.shallow_clone(), up, scale(rank(&down)), 0)?,
            ));
        }
        let first = self.one_or_two(Leaf::LokrW1, [Leaf::LokrW1A, Leaf::LokrW1B]);
        let second = self.one_or_two(Leaf::LokrW2, [Leaf::LokrW2A, Leaf::LokrW2B]);
        if let (Some(first), Some(second)) = (first, second) {
            let (first, second) = (self.remove(&first)?, self.remove(&second)?);
            let inner = |pair: &[Tensor]| pair.get(1).and_then(rank);
            let scale = scale(inner(&first).or_else(|| inner(&second)));
            adapters.push((LoraForm::LoKr, LinearAdapter::kronecker(&first, second, scale, 0)?));
        }
        if let Some([a0, b0, a1, b1]) = self.take([Leaf::HadaW1A, Leaf::HadaW1B, Leaf::HadaW2A, Leaf::HadaW2B])? {
            let scale = scale(rank(&b0));
            adapters.push((LoraForm::LoHa, LinearAdapter::hadamard([a0, a1], [b0, b1], scale, 0)?));
        }
        if let Some([diff]) = self.take([Leaf::Diff])? {
            adapters.push((LoraForm::Full, LinearAdapter::full(diff, 1.0, 0)?));
        }
        if let Some([bias]) = self.take([Leaf::DiffBias])? {
            adapters.push((LoraForm::Full, LinearAdapter::of_bias(bias, 0)?));
        }
        // A bias and magnitudes belong to the first adapter.
        let mut adapters = adapters.into_iter();
        let mut built = Vec::new();
        if let Some((mut form, mut adapter)) = adapters.next() {
            // A difference of the bias has no product that they could be of.
            let product = adapter.input() > 0;
            if let Some([bias]) = self.take_if(product, [Leaf::UpBias])? {
                adapter = adapter.with_bias(bias, true)?;
            }
            for leaf in [Leaf::PeftMagnitude, Leaf::LycorisMagnitude] {
                if let Some([magnitude]) = self.take_if(product && form != LoraForm::Dora, [leaf])? {
                    adapter = adapter.with_magnitude(&magnitude, leaf.norm())?;
                    form = LoraForm::Dora;
                }
            }
            built.push((form, adapter));
        }
        built.extend(adapters);
        let alpha = alpha.filter(|_| built.is_empty()).map(|(name, _)| name);
        let left: Vec<String> = self.tensors.into_values().map(|(name, _)| name).chain(alpha).collect();
        not_finite.retain(|name| !left.contains(name));
        Ok(Built {
            adapters: built,
            left,
            not_finite,
        })
    }

    fn take_if<const N: usize>(&mut self, condition: bool, leaves: [Leaf; N]) -> Result<Option<[Tensor; N]>> {
        if condition { self.take(leaves) } else { Ok(None) }
    }

    /// Removes and returns the tensors if all are present.
    fn take<const N: usize>(&mut self, leaves: [Leaf; N]) -> Result<Option<[Tensor; N]>> {
        if !leaves.iter().all(|leaf| self.tensors.contains_key(leaf)) {
            return Ok(None);
        }
        Ok(self.remove(&leaves)?.try_into().ok())
    }

    fn remove(&mut self, leaves: &[Leaf]) -> Result<Vec<Tensor>> {
        let tensors = leaves.iter().filter_map(|leaf| self.tensors.remove(leaf));
        tensors.map(|(_, tensor)| plain(&tensor)).collect()
    }

    /// Returns the leaves that define a matrix: itself, or its two low-rank factors.
    fn one_or_two(&self, one: Leaf, two: [Leaf; 2]) -> Option<Vec<Leaf>> {
        let has = |leaf: &Leaf| self.tensors.contains_key(leaf);
        if has(&one) {
            Some(vec![one])
        } else {
            two.iter().all(has).then(|| two.to_vec())
        }
    }
}

/// Converts a tensor for computing: flattens a 1x1 convolution to a matrix, widens 8-bit floats to f16.
fn plain(tensor: &Tensor) -> Result<Tensor> {
    let value = match tensor.kind() {
        Kind::Float | Kind::Half | Kind::BFloat16 | Kind::Double => tensor.shallow_clone(),
        Kind::Float8e4m3fn | Kind::Float8e5m2 => tensor.f_to_kind(Kind::Half)?,
        other => return Err(Error::invalid("dtype of a factor", "a float", format!("{other:?}"))),
    };
    match value.size().as_slice() {
        [_, _, 1, 1] => Ok(value.f_flatten(1, -1)?),
        _ => Ok(value),
    }
}

/// Returns `true` if all numbers are finite in f32, in which adapters are computed.
fn is_finite(tensor: &Tensor) -> Result<bool> {
    let all = tensor.f_to_kind(Kind::Float)?.f_isfinite()?.f_all()?;
    Ok(all.f_int64_value(&[])? == 1)
}

fn shape(name: &str, tensor: &Tensor) -> String {
    format!("`{name}` of shape {:?}", tensor.size())
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;
    use crate::key;
    use crate::table::Table;

    fn try_build(tensors: &[(&str, Tensor)]) -> Result<Built> {
        let table = Table::new().unwrap();
        let key = |leaf: &str| key::read(&format!("lora_unet_img_in.{leaf}"), &table, true).unwrap();
        let mut factors = AdapterFactors::new(key("alpha"));
        for (leaf, tensor) in tensors {
            factors.insert(key(leaf).leaf, (*leaf).to_owned(), tensor.shallow_clone());
        }
        factors.build(&Scaling::default())
    }

    fn build(tensors: &[(&str, &[i64])]) -> Built {
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let tensors: Vec<_> = tensors.iter().map(|(leaf, shape)| (*leaf, ones(shape))).collect();
        try_build(&tensors).unwrap()
    }

    #[test]
    fn each_form_is_known_by_its_factors() {
        let form = |tensors: &[(&str, &[i64])]| {
            let built = build(tensors);
            assert!(built.left.is_empty(), "{:?}", built.left);
            built
                .adapters
                .iter()
                .map(|(form, adapter)| (*form, adapter.rank()))
                .collect::<Vec<_>>()
        };
        let low_rank: [(&str, &[i64]); 2] = [("lora_down.weight", &[2, 6, 1, 1]), ("lora_up.weight", &[8, 2, 1, 1])];
        assert_eq!(form(&low_rank), [(LoraForm::LowRank, Some(2))]);
        assert_eq!(
            form(&[low_rank[0], low_rank[1], ("dora_scale", &[8, 1])]),
            [(LoraForm::Dora, Some(2))]
        );
        assert_eq!(
            form(&[("lokr_w1", &[2, 2]), ("lokr_w2", &[4, 3]), ("alpha", &[])]),
            [(LoraForm::LoKr, None)]
        );
        let both = [("diff", &[8, 6][..]), ("diff_b", &[8][..])];
        assert_eq!(form(&both), [(LoraForm::Full, None), (LoraForm::Full, None)]);
    }

    #[test]
    fn factors_without_their_partners_are_left() {
        assert_eq!(
            build(&[("lora_down.weight", &[2, 6]), ("alpha", &[])]).left,
            ["lora_down.weight", "alpha"]
        );
        assert_eq!(build(&[("lokr_w1", &[2, 2])]).left, ["lokr_w1"]);
        assert_eq!(build(&[("hada_w1_a", &[8, 2]), ("hada_w1_b", &[2, 6])]).left.len(), 2);
    }

    #[test]
    fn factors_of_any_shape_make_an_error_and_not_a_panic() {
        let shapes: [&[i64]; 6] = [&[], &[0], &[2], &[0, 6], &[2, 6, 1], &[2, 6, 3, 3]];
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let pairs = [
            ["lora_down.weight", "lora_up.weight"],
            ["lora_up.weight", "lora_down.weight"],
            ["lokr_w1", "lokr_w2"],
            ["lokr_w2", "lokr_w1"],
        ];
        for shape in shapes {
            for [odd, other] in pairs {
                let error = try_build(&[(odd, ones(shape)), (other, ones(&[8, 2]))]).unwrap_err();
                assert!(
                    error.to_string().contains("factor of an adapter"),
                    "{odd} {shape:?}: {error}"
                );
            }
            assert!(try_build(&[("diff", ones(shape))]).is_err(), "{shape:?}");
            let hada = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].map(|leaf| (leaf, ones(shape)));
            assert!(try_build(&hada).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn factors_that_are_not_finite_are_named_if_they_are_used() {
        let number = |value: f64| Tensor::from(value);
        let ones = |shape: &[i64]| Tensor::ones(shape, (Kind::Double, Device::Cpu));
        let (down, up) = (("lora_down.weight", ones(&[2, 6])), ("lora_up.weight", ones(&[8, 2])));
        let copy = |(leaf, tensor): &(&'static str, Tensor)| (*leaf, tensor.shallow_clone());
        for bad in [f64::NAN, f64::INFINITY, 1e300] {
            let built = try_build(&[copy(&down), copy(&up), ("alpha", number(bad))]).unwrap();
            assert_eq!(built.not_finite, ["alpha"]);
            let built = try_build(&[copy(&down), ("lora_up.weight", ones(&[8, 2]) * bad)]).unwrap();
            assert_eq!(built.not_finite, ["lora_up.weight"]);
            let built = try_build(&[copy(&down), copy(&up), ("dora_scale", ones(&[8]) * bad)]).unwrap();
            assert_eq!(built.not_finite, ["dora_scale"]);
        }
        let lone = [copy(&down), copy(&up), ("hada_w1_a", ones(&[8, 2]) * f64::NAN)];
        let built = try_build(&lone).unwrap();
        assert_eq!((built.not_finite, built.left), (vec![], vec!["hada_w1_a".to_owned()]));
    }

    #[test]
    fn no_tensor_is_replaced_or_dropped_without_a_word() {
        let bias = ("diff_b", &[8][..]);
        assert_eq!(build(&[bias, ("dora_scale", &[8])]).left, ["dora_scale"]);
        assert_eq!(build(&[bias, ("lora_B.bias", &[8])]).left, ["lora_B.bias"]);
        let pair = [("lora_down.weight", &[2, 6][..]), ("lora_up.weight", &[8, 2])];
        let two = [pair[0], pair[1], ("lora_magnitude_vector", &[8]), ("dora_scale", &[8])];
        assert_eq!(build(&two).left, ["dora_scale"]);
    }
}
