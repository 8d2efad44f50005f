//! Edits combined with a change of style.

use super::key::{Change, Key, Style};
use super::pairs::{Pair, Pairs};

impl Pairs<'_> {
    /// Adds edits combined with a change of style: the source has another style than the target.
    pub(super) fn compound(&mut self) {
        let mut compound = Vec::new();
        // High contrast stays on white: on a dark background it is invisible.
        let exists =
            |key: &Key| key.exists(self.packages) && (key.style != Style::Contrast || key.change == Change::None);
        for pair in &self.pairs {
            let (Some((_, category)), [source]) = (
                COMPOUND.iter().find(|(edit, _)| *edit == pair.category),
                pair.sources.as_slice(),
            ) else {
                continue;
            };
            if pair.target.change == Change::None && source.change != Change::None {
                // With a white target it would be little more than the change of style, which may be held out.
                continue;
            }
            for style in Style::ALL.into_iter().filter(|style| *style != pair.target.style) {
                let source = source.styled(style);
                if !exists(&source) {
                    continue;
                }
                // A result without the change of style counts as wrong.
                let unstyled = pair.candidates.iter().map(|key| key.styled(style));
                let unstyled = unstyled.filter(exists);
                compound.push(Pair {
                    category,
                    sources: vec![source],
                    style: pair.target.style.words().to_owned(),
                    candidates: pair.candidates.iter().cloned().chain(unstyled).collect(),
                    ..pair.clone()
                });
            }
        }
        self.pairs.extend(compound);
    }
}

/// Categories of edits combined with a change of style, and the category of the combination.
const COMPOUND: [(&str, &str); 12] = [
    ("local/skin-tone", "compound/skin-tone"),
    ("local/gender", "compound/gender"),
    ("local/hair", "compound/hair"),
    ("local/expression", "compound/expression"),
    ("local/clock", "compound/clock"),
    ("local/moon", "compound/moon"),
    ("local/arrow", "compound/arrow"),
    ("local/colour", "compound/colour"),
    ("text/keycap", "compound/keycap"),
    ("text/letter", "compound/letter"),
    ("text/sign", "compound/sign"),
    ("global/background", "compound/background"),
];
