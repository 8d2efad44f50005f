//! An edit and a change of style in one.

use super::families::{Pair, Pairs};
use super::named::subjects;
use super::picture::{Change, GROUNDS, Key, Style};

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

    /// A thing or a face on another ground in another style. High contrast is left out: on a dark ground nothing is seen.
    pub(super) fn styles_on_grounds(&mut self) {
        for (slug, _) in subjects() {
            let plain = self.styles_of(&slug);
            let coloured: Vec<&Key> = plain.iter().filter(|key| key.style != Style::Contrast).collect();
            let on = |index: usize| {
                let ground = Change::Ground(index % GROUNDS.len());
                coloured.iter().map(move |key| key.changed(ground))
            };
            let candidates: Vec<Key> = plain.iter().cloned().chain((0..GROUNDS.len()).flat_map(on)).collect();
            for (index, (ground, _)) in GROUNDS.iter().enumerate() {
                for target in on(index) {
                    let sources = plain.iter().cloned().chain(on(index + 1));
                    for source in sources.filter(|source| source.style != target.style) {
                        self.pairs.push(Pair {
                            category: "compound/background",
                            sources: vec![source],
                            target: target.clone(),
                            words: (*ground).to_owned(),
                            second: String::new(),
                            style: target.style.words().to_owned(),
                            combination: target.path(),
                            candidates: candidates.clone(),
                        });
                    }
                }
            }
        }
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
