//! What a LoRA file holds.

use std::collections::BTreeMap;

use kontext_core::Result;
use kontext_nn::Change;

use super::factors::LoraForm;
use super::families::LoraFamily;
use super::table::{Layer, LoraTarget};

/// What a LoRA file holds, and what of it fits FLUX.1.
///
/// Printed, it is a short account in lines.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct LoraReport {
    /// Whose names it has, with the number of tensors.
    pub families: BTreeMap<LoraFamily, usize>,
    /// The forms of its changes, with the number of layers.
    pub forms: BTreeMap<LoraForm, usize>,
    /// Its ranks, with the number of layers.
    pub ranks: BTreeMap<i64, usize>,
    /// The parts of a pipeline that it changes, with the number of layers.
    pub targets: BTreeMap<LoraTarget, usize>,
    /// Names of the layers without effect, because a factor is zero.
    pub without_effect: Vec<String>,
    /// Number of tensors that are used.
    pub matched: usize,
    /// Tensors that fit nothing.
    pub unmatched: Vec<Unmatched>,
    /// The free text of the header: how it was trained, where its writer says so.
    pub facts: BTreeMap<String, String>,
}

/// A tensor that fits nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unmatched {
    /// Its name in the file.
    pub name: String,
    /// Why.
    pub reason: &'static str,
    /// The nearest name of a layer, as the file would write it.
    pub nearest: Option<String>,
}

impl std::fmt::Display for Unmatched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ({}", self.name, self.reason)?;
        match &self.nearest {
            Some(nearest) => write!(f, "; nearest: `{nearest}`)"),
            None => f.write_str(")"),
        }
    }
}

impl LoraReport {
    /// Counts a layer and its changes.
    pub(super) fn add(&mut self, layer: &Layer, changes: &[(LoraForm, Change)]) -> Result<()> {
        let mut silent = true;
        for (form, change) in changes {
            *self.forms.entry(*form).or_default() += 1;
            if let Some(rank) = change.rank() {
                *self.ranks.entry(rank).or_default() += 1;
            }
            silent &= change.is_nothing()?;
        }
        if silent {
            self.without_effect.push(layer.module.clone());
        }
        *self.targets.entry(layer.target).or_default() += 1;
        Ok(())
    }

    /// Number of layers that it names.
    #[must_use]
    pub fn layers(&self) -> usize {
        self.targets.values().sum()
    }
}

impl std::fmt::Display for LoraReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        /// Longer texts (counts of all tags of a data set) are for programs.
        const LONGEST: usize = 100;
        writeln!(f, "naming:    {}", counted(&self.families, "tensors"))?;
        writeln!(f, "changes:   {}", counted(&self.forms, "layers"))?;
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
        for layer in &self.without_effect {
            write!(f, "\nno effect: `{layer}` (a factor is zero)")?;
        }
        for (name, value) in self.facts.iter().filter(|(_, value)| value.len() <= LONGEST) {
            write!(f, "\n{name} = {value}")?;
        }
        Ok(())
    }
}

/// "a (3 layers), b (1 layers)".
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
