//! Pairs of images, each an edit without its wording.

use super::key::{Key, Style};
use super::packages::Packages;

/// An edit without its wording.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// Category, such as "local/hair".
    pub(super) category: &'static str,
    /// Reference images; empty for text-to-image.
    pub(super) sources: Vec<Key>,
    /// The true result.
    pub(super) target: Key,
    /// The aim of the edit, `{}` in wordings.
    pub(super) words: String,
    /// A second word, `{1}` in wordings; may be empty.
    pub(super) second: String,
    /// The additional style of `compound/…`, `{2}` in wordings; empty for others.
    pub(super) style: String,
    /// The unit of the split: pairs of one combination are all trained on, or all held out.
    pub(super) combination: String,
    /// The images among which the target must be the nearest to a result.
    pub(super) candidates: Vec<Key>,
}

/// The styles of people.
pub(super) const PEOPLE_STYLES: [Style; 2] = [Style::ThreeD, Style::Flat];
/// Distances in a list of subjects between a subject and the examples of a style.
pub(super) const EXAMPLES: [usize; 6] = [1, 7, 31, 43, 59, 83];

/// A collection of pairs whose images exist.
pub(super) struct Pairs<'a> {
    pub(super) packages: &'a Packages,
    pub(super) pairs: Vec<Pair>,
}

impl Pair {
    /// Returns `true` if pairs of this category may train on targets that other categories hold out, with other wordings
    /// and sources: by name, or with a change of style. Without them, edits would be tested on targets never seen.
    pub(super) fn shows_otherwise(&self) -> bool {
        self.category.starts_with("generate/") || self.category.starts_with("compound/")
    }
}

impl Pairs<'_> {
    /// Adds every ordered pair of a set of images that differ in one thing.
    pub(super) fn set(
        &mut self,
        category: &'static str,
        members: &[(Key, String)],
        second: &str,
        combination: impl Fn(&Key) -> String,
    ) {
        let members: Vec<&(Key, String)> = members.iter().filter(|(key, _)| key.exists(self.packages)).collect();
        let candidates: Vec<Key> = members.iter().map(|(key, _)| key.clone()).collect();
        for (source, _) in &members {
            for (target, words) in members.iter().filter(|(target, _)| target != source) {
                self.pairs.push(Pair {
                    category,
                    sources: vec![source.clone()],
                    target: target.clone(),
                    words: words.clone(),
                    second: second.to_owned(),
                    style: String::new(),
                    combination: combination(target),
                    candidates: candidates.clone(),
                });
            }
        }
    }
}
