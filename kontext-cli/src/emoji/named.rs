//! Images from their names, without a reference or in the style of one.

use super::key::{Key, Style, TONES};
use super::pairs::{EXAMPLES, Pair, Pairs};
use super::tables::{
    ARROWS, CLOCKS, COLOURED, FACES, GENDERS, HAIRS, HANDS, KEYCAPS, LETTERS, MOONS, ROLES, SIGNS, THINGS,
};

impl Pairs<'_> {
    /// Adds every image from its name, without references and in the style of one.
    pub(super) fn generations(&mut self) {
        let named = names();
        for (index, (slug, words, tones)) in named.iter().enumerate() {
            for style in Style::ALL {
                for tone in 0..if *tones { TONES.len() as u8 } else { 1 } {
                    let key = Key::new(style, slug, tone);
                    if !key.exists(self.packages) || (*tones && style == Style::Contrast) {
                        continue;
                    }
                    let words = match tone {
                        0 => words.clone(),
                        _ => format!("{words}, {} skin", key.tone_words()),
                    };
                    // The same in other styles and tones, and some other images of this style.
                    let mut candidates: Vec<Key> = Style::ALL.map(|style| key.styled(style)).to_vec();
                    candidates.extend((0..TONES.len() as u8).map(|tone| Key::new(style, slug, tone)));
                    candidates.extend((1..12).map(|n| Key::new(style, &named[(index + 17 * n) % named.len()].0, 0)));
                    candidates.sort();
                    candidates.dedup();
                    candidates.retain(|key| key.exists(self.packages));
                    let pair = Pair {
                        category: "generate/name",
                        sources: Vec::new(),
                        combination: key.path(),
                        target: key,
                        words,
                        second: style.words().to_owned(),
                        style: String::new(),
                        candidates,
                    };
                    self.like_examples(&pair, index);
                    self.pairs.push(pair);
                }
            }
        }
    }

    /// Adds an image from its name, in the style of a reference.
    fn like_examples(&mut self, named: &Pair, index: usize) {
        for step in EXAMPLES.into_iter().take(LIKE) {
            let example = Key::new(named.target.style, THINGS[(index * 13 + step) % THINGS.len()], 0);
            if example.exists(self.packages) && example.slug != named.target.slug {
                let mut candidates = named.candidates.clone();
                candidates.push(example.clone());
                self.pairs.push(Pair {
                    category: "generate/like",
                    sources: vec![example],
                    second: String::new(),
                    candidates,
                    ..named.clone()
                });
            }
        }
    }
}

/// References of each named image.
const LIKE: usize = 2;

/// Returns things and faces with their names.
pub(super) fn subjects() -> Vec<(String, String)> {
    let things = THINGS
        .iter()
        .map(|slug| ((*slug).to_owned(), slug.replace("-face", "").replace('-', " ")));
    let faces = FACES
        .iter()
        .map(|(slug, words)| ((*slug).to_owned(), format!("{words} face")));
    things.chain(faces).collect()
}

/// Returns everything with a name: file name, name in instructions, and `true` if it exists in skin tones.
pub(super) fn names() -> Vec<(String, String, bool)> {
    let mut names: Vec<(String, String, bool)> = subjects().into_iter().map(|(s, w)| (s, w, false)).collect();
    let mut add = |slug: &str, words: String, tones| names.push((slug.to_owned(), words, tones));
    for (_, noun, _) in GENDERS {
        add(noun, format!("a {noun}"), true);
        HAIRS
            .iter()
            .for_each(|(hair, words)| add(&format!("{noun}-{hair}"), format!("a {noun} with {words}"), true));
    }
    for (role, words) in ROLES {
        add(role, format!("a {words}"), true);
        add(&format!("man-{role}"), format!("a man {words}"), true);
        add(&format!("woman-{role}"), format!("a woman {words}"), true);
    }
    HANDS
        .iter()
        .for_each(|(slug, words)| add(slug, (*words).to_owned(), true));
    for (noun, members) in COLOURED {
        members
            .iter()
            .for_each(|(slug, words)| add(slug, format!("a {words} {noun}"), false));
    }
    CLOCKS
        .iter()
        .for_each(|(slug, words)| add(slug, format!("a clock at {words}"), false));
    MOONS
        .iter()
        .for_each(|(slug, words)| add(slug, format!("a {words} moon"), false));
    ARROWS
        .iter()
        .for_each(|(slug, words)| add(slug, format!("an arrow pointing {words}"), false));
    KEYCAPS
        .iter()
        .for_each(|(slug, words)| add(slug, format!("the number {words}"), false));
    LETTERS
        .iter()
        .for_each(|(slug, words)| add(slug, format!("the text {words}"), false));
    SIGNS
        .iter()
        .for_each(|(slug, words)| add(slug, format!("a {words} sign"), false));
    names
}
