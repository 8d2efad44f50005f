//! Which pictures are pairs, and what is asked for.

use super::packages::Packages;
use super::picture::{Key, Style};
use super::tables::{ARROWS, CLOCKS, COLOURED, FACES, KEYCAPS, LETTERS, MOONS, SIGNS};

/// One edit, not yet worded.
#[derive(Debug, Clone)]
pub struct Pair {
    pub category: &'static str,
    pub sources: Vec<Key>,
    pub target: Key,
    /// What the wording's gaps are filled with.
    pub words: String,
    pub second: String,
    /// The style that is asked for beside the edit, in `compound/…`.
    pub style: String,
    /// What is held out as a whole: pairs of one combination are all in training, or all not.
    pub combination: String,
    /// The pictures among which the target must be the nearest to a result.
    pub candidates: Vec<Key>,
}

/// The styles that people come in.
pub(super) const PEOPLE_STYLES: [Style; 2] = [Style::ThreeD, Style::Flat];
/// How far, in a list of subjects, the examples of a style are from what is redrawn.
pub(super) const EXAMPLES: [usize; 6] = [1, 7, 31, 43, 59, 83];

/// Collects pairs of pictures that exist.
pub(super) struct Pairs<'a> {
    pub(super) packages: &'a Packages,
    pub(super) pairs: Vec<Pair>,
}

/// All pairs.
pub fn all(packages: &Packages) -> Vec<Pair> {
    let mut pairs = Pairs {
        packages,
        pairs: Vec::new(),
    };
    pairs.people();
    pairs.sets();
    pairs.whole_pictures();
    pairs.other_styles();
    pairs.other_pictures();
    pairs.generations();
    pairs.compound();
    pairs.pairs
}

impl Pair {
    /// Whether pairs of this category may show what others hold out, in other words and from other pictures: by its name,
    /// or with a change of style. An edit can ask for no picture that training never drew.
    pub fn shows_otherwise(&self) -> bool {
        self.category.starts_with("generate/") || self.category.starts_with("compound/")
    }
}

impl Pairs<'_> {
    /// Every ordered pair within a set of pictures that differ in one thing.
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
                for (what, members) in COLOURED {
                    self.set("local/colour", &keyed(members), what, by_path);
                }
            }
        }
    }
}
