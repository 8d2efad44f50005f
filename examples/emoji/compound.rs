//! An edit and a change of style in one.

use super::families::{Pair, Pairs};
use super::picture::{Change, Key, Style};

impl Pairs<'_> {
    /// An edit and a change of style in one: the source comes in another style than the target.
    pub(super) fn compound(&mut self) {
        let mut compound = Vec::new();
        // High contrast is left as it is: on a dark ground nothing of it is seen.
        let exists =
            |key: &Key| key.exists(self.packages) && (key.style != Style::Contrast || key.change == Change::None);
        for pair in &self.pairs {
            let (Some((_, category)), [source]) = (
                COMPOUND.iter().find(|(of, _)| *of == pair.category),
                pair.sources.as_slice(),
            ) else {
                continue;
            };
            if pair.target.change == Change::None && source.change != Change::None {
                // Back on white, it would be little more than the change of style, which may be held out.
                continue;
            }
            for style in Style::ALL.into_iter().filter(|style| *style != pair.target.style) {
                let source = source.styled(style);
                if !exists(&source) {
                    continue;
                }
                // Half of what is asked for is not enough.
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

/// Edits that are asked for together with a change of style, too, and what that is called.
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
