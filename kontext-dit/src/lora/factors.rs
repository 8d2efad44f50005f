//! The tensors of one layer, and the changes that they make.
//!
//! Source: KohakuBlueleaf/LyCORIS 4.1.3 `lycoris/modules/{locon,lokr,loha,full}.py`; huggingface/peft 0.21
//! `src/peft/tuners/{lora,lokr,loha}/layer.py`.

use std::collections::BTreeMap;

use kontext_core::nn::Change;
use kontext_core::{Error, Result, Tensor};

use super::families::{Key, Leaf};
use super::scaling::Scaling;

/// The form of a layer's change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum LoraForm {
    /// `up @ down`.
    LowRank,
    /// A low-rank change and the lengths of the rows.
    Dora,
    /// A Kronecker product.
    LoKr,
    /// A Hadamard product of two low-rank ones.
    LoHa,
    /// A whole matrix, or a bias.
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
pub(super) struct Factors {
    key: Key,
    tensors: BTreeMap<Leaf, (String, Tensor)>,
}

/// What came of a layer's tensors.
#[derive(Debug)]
pub(super) struct Built {
    pub(super) changes: Vec<(LoraForm, Change)>,
    /// Tensors that lack their partner.
    pub(super) left: Vec<String>,
}

impl Factors {
    pub(super) fn new(key: Key) -> Self {
        Self { key, tensors: BTreeMap::new() }
    }

    /// Adds a tensor; the name of the one that it replaces comes back.
    pub(super) fn insert(&mut self, leaf: Leaf, name: String, tensor: Tensor) -> Option<String> {
        self.tensors.insert(leaf, (name, tensor)).map(|(name, _)| name)
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    /// Makes the changes, for a layer that begins at row 0.
    pub(super) fn build(mut self, scaling: &Scaling) -> Result<Built> {
        let alpha = match self.tensors.remove(&Leaf::Alpha) {
            Some((name, alpha)) if alpha.numel() == 1 => Some((name, alpha.f_flatten(0, -1)?.f_double_value(&[0])?)),
            Some((name, alpha)) => return Err(Error::invalid("alpha of a LoRA", "one number", shape(&name, &alpha))),
            None => None,
        };
        let (target, module) = (self.key.layer.target, self.key.layer.module.clone());
        let scale = |rank: Option<i64>| match (&alpha, rank) {
            (Some((_, alpha)), Some(rank)) => alpha / rank as f64,
            // LyCORIS: two whole matrices have the scale in them.
            (Some(_), None) => 1.0,
            (None, rank) => match rank.map(|r| r as f64).or_else(|| scaling.rank(target)) {
                Some(rank) => scaling.scale(target, &module, rank),
                None => 1.0,
            },
        };
        let mut changes = Vec::new();
        if let Some([down, up]) = self.take([Leaf::Down, Leaf::Up])? {
            changes
                .push((LoraForm::LowRank, Change::low_rank(down.shallow_clone(), up, scale(Some(down.size()[0])), 0)?));
        }
        let first = self.one_or_two(Leaf::LokrW1, [Leaf::LokrW1A, Leaf::LokrW1B])?;
        let second = self.one_or_two(Leaf::LokrW2, [Leaf::LokrW2A, Leaf::LokrW2B])?;
        if let (Some(first), Some(second)) = (first, second) {
            let rank = |pair: &[Tensor]| pair.get(1).and_then(|b| b.size().first().copied());
            let scale = scale(rank(&first).or_else(|| rank(&second)));
            changes.push((LoraForm::LoKr, Change::kronecker(first, second, scale, 0)?));
        }
        if let Some([a0, b0, a1, b1]) = self.take([Leaf::HadaW1A, Leaf::HadaW1B, Leaf::HadaW2A, Leaf::HadaW2B])? {
            let scale = scale(b0.size().first().copied());
            changes.push((LoraForm::LoHa, Change::hadamard([a0, a1], [b0, b1], scale, 0)?));
        }
        if let Some([diff]) = self.take([Leaf::Diff])? {
            changes.push((LoraForm::Full, Change::full(diff, 1.0, 0)?));
        }
        if let Some([bias]) = self.take([Leaf::DiffBias])? {
            changes.push((LoraForm::Full, Change::of_bias(bias, 0)?));
        }
        // What belongs to a matrix goes to the first.
        let mut changes = changes.into_iter();
        let mut built = Vec::new();
        if let Some((mut form, mut change)) = changes.next() {
            if let Some([bias]) = self.take([Leaf::UpBias])? {
                change = change.with_bias(bias, true)?;
            }
            for leaf in [Leaf::PeftMagnitude, Leaf::LycorisMagnitude] {
                if let Some((_, magnitude)) = self.tensors.remove(&leaf) {
                    change = change.with_magnitude(magnitude, leaf.norm())?;
                    form = LoraForm::Dora;
                }
            }
            built.push((form, change));
        }
        built.extend(changes);
        let alone = alpha.filter(|_| built.is_empty()).map(|(name, _)| name);
        let left = self.tensors.into_values().map(|(name, _)| name).chain(alone).collect();
        Ok(Built { changes: built, left })
    }

    /// The tensors, if all are there: matrices, or vectors.
    fn take<const N: usize>(&mut self, leaves: [Leaf; N]) -> Result<Option<[Tensor; N]>> {
        if !leaves.iter().all(|leaf| self.tensors.contains_key(leaf)) {
            return Ok(None);
        }
        let tensors = leaves.iter().filter_map(|leaf| self.tensors.remove(leaf)).map(|(_, tensor)| plain(&tensor));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        Ok(tensors.try_into().ok())
    }

    fn one_or_two(&mut self, one: Leaf, two: [Leaf; 2]) -> Result<Option<Vec<Tensor>>> {
        match self.take([one])? {
            Some(one) => Ok(Some(one.into())),
            None => Ok(self.take(two)?.map(Vec::from)),
        }
    }
}

/// A convolution of one pixel as the matrix that it is.
fn plain(tensor: &Tensor) -> Result<Tensor> {
    match tensor.size().as_slice() {
        [_, _, 1, 1] => Ok(tensor.f_flatten(1, -1)?),
        _ => Ok(tensor.shallow_clone()),
    }
}

fn shape(name: &str, tensor: &Tensor) -> String {
    format!("`{name}` of shape {:?}", tensor.size())
}
