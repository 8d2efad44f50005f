//! Report on the content of a LoRA file.

use std::collections::BTreeMap;

use kontext_core::{Result, printable};
use kontext_nn::LinearAdapter;

use crate::factors::LoraForm;
use crate::family::LoraFamily;
use crate::table::{Layer, LoraTarget};

/// Number of unmatched tensors whose nearest names are searched for.
pub(super) const HINTS: usize = 32;

/// Content of a LoRA file, and its match with FLUX.1.
///
/// Its `Display` is a summary of a few lines.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct LoraReport {
    /// Families of its tensor names, with the number of tensors.
    pub families: BTreeMap<LoraFamily, usize>,
    /// Forms of its adapters, with the number of layers.
    pub forms: BTreeMap<LoraForm, usize>,
    /// Ranks, with the number of layers.
    pub ranks: BTreeMap<i64, usize>,
    /// Models that it adapts, with the number of layers.
    pub targets: BTreeMap<LoraTarget, usize>,
    /// Names of layers without effect because a factor is zero.
    pub without_effect: Vec<String>,
    /// Names of used tensors that hold NaN or infinity: a file with any is refused.
    pub not_finite: Vec<String>,
    /// Number of tensors in use.
    pub matched: usize,
    /// Tensors without a match in the model.
    pub unmatched: Vec<Unmatched>,
    /// The file's metadata, such as training details recorded by its writer.
    pub facts: BTreeMap<String, String>,
}

/// A tensor without a match in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unmatched {
    /// Name of the tensor in the file.
    pub name: String,
    /// Reason why it has no match.
    pub reason: &'static str,
    /// Nearest layer name, in the file's naming. It is searched for the first 32 tensors of a file.
    pub nearest: Option<String>,
}

impl std::fmt::Display for Unmatched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ({}", printable(&self.name), self.reason)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; nearest: `{nearest}`)"),
            None => f.write_str(")"),
        }
    }
}

impl LoraReport {
    /// Returns `true` if the nearest name of one more tensor is worth its time: the first ones show the
    /// pattern, and a damaged file can hold any number.
    pub(super) fn wants_hints(&self) -> bool {
        self.unmatched.len() < HINTS
    }

    /// Adds a layer and its adapters to the counts.
    pub(super) fn add(&mut self, layer: &Layer, adapters: &[(LoraForm, LinearAdapter)]) -> Result<()> {
        let mut silent = true;
        for (form, adapter) in adapters {
            *self.forms.entry(*form).or_default() += 1;
            if let Some(rank) = adapter.rank() {
                *self.ranks.entry(rank).or_default() += 1;
            }
            silent &= adapter.is_nothing()?;
        }
        if silent {
            self.without_effect.push(layer.module.clone());
        }
        *self.targets.entry(layer.target).or_default() += 1;
        Ok(())
    }

    /// Returns the number of layers in the file.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.targets.values().sum()
    }
}

impl std::fmt::Display for LoraReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// Longest metadata value to print; longer ones (counts of all tags of a data set) are meant for
        /// programs.
        const LONGEST: usize = 100;
        writeln!(f, "naming:    {}", counted(&self.families, "tensors"))?;
        writeln!(f, "adapters:  {}", counted(&self.forms, "layers"))?;
        writeln!(f, "rank:      {}", counted(&self.ranks, "layers"))?;
        writeln!(f, "of:        {}", counted(&self.targets, "layers"))?;
        write!(
            f,
            "matched:   {} of {} tensors",
            self.matched,
            self.matched + self.unmatched.len()
        )?;
        for unmatched in &self.unmatched {
            write!(f, "\nunmatched: {unmatched}")?;
        }
        for name in &self.not_finite {
            write!(f, "\nnot finite: `{}` (it holds NaN or infinity)", printable(name))?;
        }
        for layer in &self.without_effect {
            write!(f, "\nno effect: `{layer}` (a factor is zero)")?;
        }
        for (name, value) in self.facts.iter().filter(|(_, value)| value.len() <= LONGEST) {
            write!(f, "\n{} = {}", printable(name), printable(value))?;
        }
        Ok(())
    }
}

/// Formats counts as "a (3 layers), b (1 layers)".
fn counted(counts: &BTreeMap<impl std::fmt::Display, usize>, what: &str) -> String {
    let all: Vec<String> = counts
        .iter()
        .map(|(name, count)| format!("{name} ({count} {what})"))
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}
