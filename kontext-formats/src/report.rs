//! Reports on a checkpoint: counts, dtypes, and the search for a damaged tensor.

use std::collections::BTreeMap;

use kontext_core::{Result, check, lock};
use tch::Kind;

use super::Store;
use super::store::Source;

/// Counts over the tensors of a checkpoint's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Size in the file, in bytes.
    pub bytes: u64,
    /// Number of parameters per stored dtype, by its libtorch name, or the format's if libtorch has none.
    pub dtypes: BTreeMap<String, u64>,
}

impl Store {
    /// Counts the tensors, from headers only.
    #[must_use]
    pub fn account(&self) -> Account {
        let mut account = Account::default();
        let mut count = |dtype: String, parameters: u64, bytes: u64| {
            account.tensors += 1;
            account.parameters += parameters;
            account.bytes += bytes;
            *account.dtypes.entry(dtype).or_default() += parameters;
        };
        let dtype_name = |kind: Kind| format!("{kind:?}");
        let sized = |kind: Kind, shape: &[i64]| {
            let parameters = shape.iter().product::<i64>().unsigned_abs();
            (
                dtype_name(kind),
                parameters,
                parameters * kind.elt_size_in_bytes() as u64,
            )
        };
        match &self.source {
            Source::Files { entries, .. } => entries.values().for_each(|entry| {
                let dtype = match (entry.stored.kind, entry.stored.format) {
                    (Some(kind), _) => dtype_name(kind),
                    (None, Some(format)) => format.name().to_owned(),
                    (None, None) => "other".to_owned(),
                };
                let bytes = match dtype.as_str() {
                    "other" => 0,
                    _ => entry.bytes(),
                };
                count(dtype, entry.stored.elements(), bytes);
            }),
            Source::Memory(tensors) => lock(tensors).values().for_each(|tensor| {
                let (dtype, parameters, bytes) = sized(tensor.kind(), &tensor.size());
                count(dtype, parameters, bytes);
            }),
            Source::Synthetic { made, .. } => lock(made).values().for_each(|shape| {
                let (dtype, parameters, bytes) = sized(Kind::Float, shape);
                count(dtype, parameters, bytes);
            }),
        }
        account
    }

    /// Returns the shape of every tensor of a file, and its bytes with those of its side tensors; empty for
    /// other weights.
    #[must_use]
    pub fn stored_sizes(&self) -> BTreeMap<String, (Vec<i64>, u64)> {
        let Source::Files { entries, .. } = &self.source else {
            return BTreeMap::new();
        };
        entries
            .iter()
            .map(|(name, entry)| (name.clone(), (entry.shape().to_vec(), entry.bytes())))
            .collect()
    }

    /// Returns the name and shape of every tensor; for synthetic weights, of those made so far.
    #[must_use]
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        match &self.source {
            Source::Files { entries, .. } => entries
                .iter()
                .map(|(n, e)| (n.clone(), e.stored.shape.clone()))
                .collect(),
            Source::Memory(tensors) => lock(tensors).iter().map(|(n, t)| (n.clone(), t.size())).collect(),
            Source::Synthetic { made, .. } => lock(made).clone(),
        }
    }

    /// Returns the first tensor that holds a NaN or an infinity, to be named if a result is not finite.
    ///
    /// Reads every tensor.
    ///
    /// # Errors
    /// The errors of reading.
    pub fn first_not_finite(&self) -> Result<Option<String>> {
        for name in self.names() {
            let value = self.raw(&name)?.f_to_kind(Kind::Float)?;
            if !check::is_finite(&value)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}
