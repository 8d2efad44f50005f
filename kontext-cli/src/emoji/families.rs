//! The families of edits in the dataset.

use super::key::{Key, Style};
use super::packages::Packages;
use super::pairs::{Pair, Pairs};
use super::tables::{ARROWS, CLOCKS, COLOURED, FACES, KEYCAPS, LETTERS, MOONS, SIGNS};

/// Returns all pairs.
pub(super) fn all(packages: &Packages) -> Vec<Pair> {
    let mut pairs = Pairs {
        packages,
        pairs: Vec::new(),
    };
    pairs.people();
    pairs.sets();
    pairs.whole_images();
    pairs.other_styles();
    pairs.other_images();
    pairs.generations();
    pairs.compound();
    pairs.pairs
}

impl Pairs<'_> {
    /// Adds the sets whose members differ in one thing.
    fn sets(&mut self) {
        for style in Style::ALL {
            let keyed = |table: &[(&str, &str)]| -> Vec<(Key, String)> {
                table
                    .iter()
                    .map(|(slug, words)| (Key::new(style, slug, 0), (*words).to_owned()))
                    .collect()
            };
            let by_path = |key: &Key| key.path();
            self.set("local/expression", &keyed(&FACES), "", by_path);
            self.set("local/clock", &keyed(&CLOCKS), "", by_path);
            self.set("local/moon", &keyed(&MOONS), "", by_path);
            self.set("local/arrow", &keyed(&ARROWS), "", by_path);
            self.set("text/keycap", &keyed(&KEYCAPS), "", by_path);
            self.set("text/letter", &keyed(&LETTERS), "", by_path);
            self.set("text/sign", &keyed(&SIGNS), "", by_path);
            if style != Style::Contrast {
                for (noun, members) in COLOURED {
                    self.set("local/colour", &keyed(members), noun, by_path);
                }
            }
        }
    }
}
