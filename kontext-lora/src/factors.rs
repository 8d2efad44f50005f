//! Tensors of one layer, and the adapters built from them.
//!
//! Source: KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/modules/{locon,lokr,loha,full}.py`; huggingface/peft 0.21
//! `src/peft/tuners/{lora,lokr,loha}/layer.py`.

use std::collections::BTreeMap;

use kontext_core::{Error, Kind, Result, Tensor};
use kontext_nn::LinearAdapter;

use crate::families::{Key, Leaf};
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
}

impl AdapterFactors {
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            tensors: BTreeMap::new(),
        }
    }

    /// Adds a tensor; returns the name of the tensor that it replaces, if any.
    pub(super) fn insert(&mut self, leaf: Leaf, name: String, tensor: Tensor) -> Option<String> {
        self.tensors.insert(leaf, (name, tensor)).map(|(name, _)| name)
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Builds the adapters, for a layer that starts at row 0.
    pub(super) fn build(mut self, scaling: &Scaling) -> Result<Built> {
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
            (None, rank) => match rank.map(|r| r as f64).or_else(|| scaling.rank(target)) {
                Some(rank) => scaling.scale(target, &module, rank),
                None => 1.0,
            },
        };
        let mut adapters = Vec::new();
        if let Some([down, up]) = self.take([Leaf::Down, Leaf::Up])? {
            adapters.push((
                LoraForm::LowRank,
                LinearAdapter::low_rank(down.shallow_clone(), up, scale(Some(down.size()[0])), 0)?,
            ));
        }
        let first = self.one_or_two(Leaf::LokrW1, [Leaf::LokrW1A, Leaf::LokrW1B]);
        let second = self.one_or_two(Leaf::LokrW2, [Leaf::LokrW2A, Leaf::LokrW2B]);
        if let (Some(first), Some(second)) = (first, second) {
            let (first, second) = (self.remove(&first)?, self.remove(&second)?);
            let rank = |pair: &[Tensor]| pair.get(1).and_then(|b| b.size().first().copied());
            let scale = scale(rank(&first).or_else(|| rank(&second)));
            adapters.push((LoraForm::LoKr, LinearAdapter::kronecker(&first, second, scale, 0)?));
        }
        if let Some([a0, b0, a1, b1]) = self.take([Leaf::HadaW1A, Leaf::HadaW1B, Leaf::HadaW2A, Leaf::HadaW2B])? {
            let scale = scale(b0.size().first().copied());
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
            if let Some([bias]) = self.take([Leaf::UpBias])? {
                adapter = adapter.with_bias(bias, true)?;
            }
            for leaf in [Leaf::PeftMagnitude, Leaf::LycorisMagnitude] {
                if let Some((_, magnitude)) = self.tensors.remove(&leaf) {
                    adapter = adapter.with_magnitude(&magnitude, leaf.norm())?;
                    form = LoraForm::Dora;
                }
            }
            built.push((form, adapter));
        }
        built.extend(adapters);
        let alpha = alpha.filter(|_| built.is_empty()).map(|(name, _)| name);
        let left = self.tensors.into_values().map(|(name, _)| name).chain(alpha).collect();
        Ok(Built { adapters: built, left })
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

fn shape(name: &str, tensor: &Tensor) -> String {
    format!("`{name}` of shape {:?}", tensor.size())
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;
    use crate::families;
    use crate::table::Table;

    fn build(tensors: &[(&str, &[i64])]) -> Built {
        let table = Table::new().unwrap();
        let key = |leaf: &str| families::read(&format!("lora_unet_img_in.{leaf}"), &table).unwrap();
        let mut factors = AdapterFactors::new(key("alpha"));
        for (leaf, shape) in tensors {
            factors.insert(
                key(leaf).leaf,
                (*leaf).to_owned(),
                Tensor::ones(*shape, (Kind::Float, Device::Cpu)),
            );
        }
        factors.build(&Scaling::default()).unwrap()
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
}
