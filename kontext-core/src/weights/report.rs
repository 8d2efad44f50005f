//! What a checkpoint holds: counts, dtypes, and the search for a damaged tensor.

use std::collections::BTreeMap;

use super::{Source, Weights, lock};
use crate::{Result, check};

/// Counts over the tensors of a checkpoint's part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Account {
    /// Number of tensors.
    pub tensors: usize,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes in the file.
    pub bytes: u64,
    /// Parameters for each stored dtype, by its libtorch name.
    pub dtypes: BTreeMap<String, u64>,
}

impl Weights {
    /// Counts the tensors, from headers alone.
    #[must_use]
    pub fn account(&self) -> Account {
        let mut account = Account::default();
        for (kind, shape) in self.entries() {
            let parameters = shape.iter().product::<i64>().unsigned_abs();
            account.tensors += 1;
            account.parameters += parameters;
            account.bytes += parameters * kind.map_or(0, |k| k.elt_size_in_bytes() as u64);
            let name = kind.map_or_else(|| "other".to_owned(), |k| format!("{k:?}"));
            *account.dtypes.entry(name).or_default() += parameters;
        }
        account
    }

    fn entries(&self) -> Vec<(Option<tch::Kind>, Vec<i64>)> {
        match &self.store.source {
            Source::Files { entries, .. } => entries.values().map(|e| (e.kind, e.shape.clone())).collect(),
            Source::Memory(tensors) => lock(tensors).values().map(|t| (Some(t.kind()), t.size())).collect(),
            Source::Synthetic { made, .. } => {
                lock(made).values().map(|s| (Some(tch::Kind::Float), s.clone())).collect()
            }
        }
    }

    /// Name and shape of every tensor; of synthetic weights, of those made so far.
    #[must_use]
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        match &self.store.source {
            Source::Files { entries, .. } => entries.iter().map(|(n, e)| (n.clone(), e.shape.clone())).collect(),
            Source::Memory(tensors) => lock(tensors).iter().map(|(n, t)| (n.clone(), t.size())).collect(),
            Source::Synthetic { made, .. } => lock(made).clone(),
        }
    }

    /// The first tensor that holds a NaN or an infinity: what to name when a result is not finite.
    ///
    /// This reads every tensor.
    ///
    /// # Errors
    /// Those of reading.
    pub fn first_not_finite(&self) -> Result<Option<String>> {
        for name in self.names() {
            let value = self.raw(&name)?.f_to_kind(tch::Kind::Float)?;
            if check::finite(&name, &value).is_err() {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}
