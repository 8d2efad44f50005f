//! The tensors of a cursor by their names in the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kontext_core::Result;
use kontext_formats::Store;
use tch::Tensor;

use super::Weights;

impl Weights {
    /// The tensors that all clones of the cursor share.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The file or folder that the tensors come from.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// All names in the file, sorted; of synthetic weights, those made so far.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.store.names()
    }

    /// The stored shape of a tensor by its name in the file, without reading it.
    #[must_use]
    pub fn shape_of(&self, name: &str) -> Option<Vec<i64>> {
        self.store.shape_of(name)
    }

    /// Name and shape of every tensor; of synthetic weights, of those made so far.
    #[must_use]
    pub fn shapes(&self) -> BTreeMap<String, Vec<i64>> {
        self.store.shapes()
    }

    /// Reads a tensor by its name in the file, as it is stored; see [`Store::raw`].
    ///
    /// # Errors
    /// Those of [`Store::raw`].
    pub fn raw(&self, name: &str) -> Result<Tensor> {
        self.store.raw(name)
    }

    /// Marks every tensor for which `known` holds as accounted for: known extras of a format.
    pub fn ignore(&self, known: impl Fn(&str) -> bool) {
        let names = self.names();
        self.store.mark_used(names.iter().filter(|name| known(name)));
    }

    /// The names that no part has asked for yet.
    #[must_use]
    pub fn unused(&self) -> Vec<String> {
        self.store.unused()
    }

    /// Returns `true` for [`Weights::synthetic`] and [`Weights::blank`].
    #[must_use]
    pub fn is_synthetic(&self) -> bool {
        self.store.is_synthetic()
    }

    /// The same cursor over tensors under other names; see [`Store::renamed`].
    ///
    /// # Example
    /// ```no_run
    /// use kontext_nn::Weights;
    /// // The transformer of a file that holds a whole model.
    /// let all = Weights::open("flux1-kontext-all-in-one.safetensors")?;
    /// let transformer = all.renamed(|name| Some(name.strip_prefix("model.diffusion_model.")?.to_owned()));
    /// # Ok::<(), kontext_core::Error>(())
    /// ```
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        if self.is_synthetic() {
            return self;
        }
        Self {
            store: Arc::new(self.store.renamed(rename)),
            ..self
        }
    }

    /// The same cursor over the part that has one of these tensors: the prefix of the sign's name is removed from
    /// all names, and tensors without it are left out. Without any of the signs, all tensors as they are.
    ///
    /// This finds a part both in its own file and in one that holds a whole model.
    #[must_use]
    pub fn part(self, signs: &[&str]) -> Self {
        match self.store.part_prefix(signs) {
            Some(prefix) => self.renamed(|name| Some(name.strip_prefix(prefix.as_str())?.to_owned())),
            None => self,
        }
    }
}
