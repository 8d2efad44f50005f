//! Edits within a set and a change of style in one.

use super::families::{Pair, Pairs};
use super::picture::Style;

impl Pairs<'_> {
    /// Edits within a set and a change of style in one: the source comes in another style than the target.
    pub(super) fn compound(&mut self) {
        let mut compound = Vec::new();
        for pair in &self.pairs {
            let (Some((_, category)), [source]) =
                (COMPOUND.iter().find(|(of, _)| *of == pair.category), pair.sources.as_slice())
            else {
                continue;
            };
            for style in Style::ALL.into_iter().filter(|style| *style != pair.target.style) {
                let source = source.styled(style);
                if !source.exists(self.packages) {
                    continue;
                }
                // Half of what is asked for is not enough.
                let unstyled = pair.candidates.iter().map(|key| key.styled(style));
                let unstyled = unstyled.filter(|key| key.exists(self.packages));
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

/// Edits that are asked for together with a change of style, too, and what that is called.
const COMPOUND: [(&str, &str); 11] = [
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
];
