//! Which pictures are pairs, and what is asked for.

use std::collections::BTreeSet;

use super::packages::Packages;
use super::picture::{Change, GROUNDS, Key, Style, TONES};
use super::tables::{
    ARROWS, CLOCKS, COLOURED, FACES, GENDERS, HAIRS, HANDS, KEYCAPS, LETTERS, MOONS, ROLES, SIGNS, THINGS,
};

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

const PEOPLE_STYLES: [Style; 2] = [Style::ThreeD, Style::Flat];

/// Collects pairs of pictures that exist.
struct Pairs<'a> {
    packages: &'a Packages,
    pairs: Vec<Pair>,
}

/// All pairs.
pub fn all(packages: &Packages) -> Vec<Pair> {
    let mut pairs = Pairs { packages, pairs: Vec::new() };
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
    fn set(
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

    fn people(&mut self) {
        for style in PEOPLE_STYLES {
            let by_path = |key: &Key| key.path();
            for slug in roles().into_iter().chain(HANDS.map(|(slug, _)| slug.to_owned())) {
                let toned = (0..TONES.len() as u8).map(|tone| Key::new(style, &slug, tone));
                let toned: Vec<_> = toned.map(|key| (key.clone(), key.tone_words().to_owned())).collect();
                self.set("local/skin-tone", &toned, "", by_path);
            }
            for tone in 0..TONES.len() as u8 {
                for (role, _) in ROLES.iter().chain([&("", "")]) {
                    let member = |(start, noun, _): (&str, &str, &str)| {
                        let slug = if role.is_empty() { noun.to_owned() } else { format!("{start}{role}") };
                        (Key::new(style, &slug, tone), noun.to_owned())
                    };
                    self.set("local/gender", &GENDERS.map(member), "", by_path);
                }
                for (start, noun, pronoun) in GENDERS {
                    let hair = |(slug, words): (&str, &str)| {
                        (Key::new(style, &format!("{noun}-{slug}"), tone), words.to_owned())
                    };
                    self.set("local/hair", &HAIRS.map(hair), pronoun, by_path);
                    self.occupations(style, tone, start, noun, pronoun);
                }
            }
        }
    }

    /// The same person at work: every role, and the person without one as a source.
    fn occupations(&mut self, style: Style, tone: u8, start: &str, noun: &str, pronoun: &str) {
        let of = |role: &str, tone: u8| Key::new(style, &format!("{start}{role}"), tone);
        let plain = Key::new(style, noun, tone);
        for (role, words) in ROLES {
            let target = of(role, tone);
            // Every role of this person, and this role of other people.
            let mut candidates: Vec<Key> = ROLES.iter().map(|(role, _)| of(role, tone)).collect();
            candidates.extend((0..TONES.len() as u8).map(|tone| of(role, tone)));
            candidates.extend(GENDERS.map(|(start, ..)| Key::new(style, &format!("{start}{role}"), tone)));
            candidates.push(plain.clone());
            candidates.sort();
            candidates.dedup();
            candidates.retain(|key| key.exists(self.packages));
            for source in ROLES.iter().map(|(role, _)| of(role, tone)).chain([plain.clone()]) {
                if source != target && source.exists(self.packages) && target.exists(self.packages) {
                    self.pairs.push(Pair {
                        category: "character/occupation",
                        sources: vec![source],
                        target: target.clone(),
                        words: words.to_owned(),
                        second: pronoun.to_owned(),
                        style: String::new(),
                        combination: target.slug.clone() + TONES[usize::from(tone)].0,
                        candidates: candidates.clone(),
                    });
                }
            }
        }
    }

    fn sets(&mut self) {
        for style in Style::ALL {
            let keyed = |table: &[(&str, &str)]| -> Vec<(Key, String)> {
                table.iter().map(|(slug, words)| (Key::new(style, slug, 0), (*words).to_owned())).collect()
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

    /// Changes of the whole picture.
    fn whole_pictures(&mut self) {
        let changes = Change::all();
        for (index, (slug, _)) in subjects().into_iter().enumerate() {
            let plain: Vec<Key> = Style::ALL
                .map(|style| Key::new(style, &slug, 0))
                .into_iter()
                .filter(|k| k.exists(self.packages))
                .collect();
            let mut candidates = plain.clone();
            for key in plain.iter().filter(|key| key.style != Style::Contrast) {
                candidates.extend(changes.iter().map(|change| key.changed(*change)));
            }
            for source in &plain {
                for target in plain.iter().filter(|target| target.style != source.style) {
                    let words = target.style.words().to_owned();
                    self.whole("global/style", vec![source.clone()], target, words, &candidates);
                    // The example of the style is another subject.
                    let others = subjects();
                    for step in EXAMPLES {
                        let (example, _) = &others[(index * 13 + step) % others.len()];
                        let example = Key::new(target.style, example, 0);
                        if example.exists(self.packages) && example.slug != slug {
                            let mut candidates = plain.clone();
                            candidates.push(example.clone());
                            let sources = vec![source.clone(), example];
                            self.whole("style/reference", sources, target, String::new(), &candidates);
                        }
                    }
                }
                if source.style != Style::Contrast {
                    for change in &changes {
                        self.change(source, *change, &candidates);
                    }
                }
                self.looks(source, index, &candidates);
            }
        }
    }

    /// As the second picture looks: greyscale, sepia or inverted. Without these, most pictures could be redrawn in one
    /// other style only, and a model need not look at the second picture.
    fn looks(&mut self, source: &Key, index: usize, candidates: &[Key]) {
        // High contrast has no colours to lose, and black in sepia is black.
        let looks = [Change::Invert, Change::Sepia, Change::Grey];
        let looks = if source.style == Style::Contrast { &looks[..1] } else { &looks[..] };
        let own = looks.iter().map(|change| source.changed(*change)).filter(|key| !candidates.contains(key));
        let candidates: Vec<Key> = candidates.iter().cloned().chain(own).collect();
        for &change in looks {
            let target = source.changed(change);
            let others = subjects();
            for step in EXAMPLES.into_iter().take(LOOKS) {
                let (example, _) = &others[(index * 13 + step) % others.len()];
                let example = Key::new(source.style, example, 0);
                if example.exists(self.packages) && example.slug != source.slug {
                    let sources = vec![source.clone(), example.changed(change)];
                    self.whole("style/look", sources, &target, String::new(), &candidates);
                }
            }
        }
    }

    /// People, hands, signs and all that is no subject of other changes, in its other styles.
    fn other_styles(&mut self) {
        for (slug, _, tones) in names().into_iter().skip(subjects().len()) {
            let styles = if tones { &PEOPLE_STYLES[..] } else { &Style::ALL[..] };
            for tone in 0..if tones { TONES.len() as u8 } else { 1 } {
                let keys = styles.iter().map(|style| Key::new(*style, &slug, tone));
                let keys: Vec<Key> = keys.filter(|key| key.exists(self.packages)).collect();
                for source in &keys {
                    for target in keys.iter().filter(|target| target.style != source.style) {
                        let words = target.style.words().to_owned();
                        self.whole("global/style", vec![source.clone()], target, words, &keys);
                    }
                }
            }
        }
    }

    /// Pictures without a name in the dataset: more to turn and to colour, so that a model learns to do it to any.
    fn other_pictures(&mut self) {
        let named: BTreeSet<String> = names().into_iter().map(|(slug, ..)| slug).collect();
        let toned = |slug: &str| TONES.iter().any(|(_, end)| !end.is_empty() && slug.ends_with(end));
        let mut others: Vec<String> = self.packages.flat.keys().cloned().collect();
        others.retain(|slug| !named.contains(slug) && !toned(slug));
        others.sort();
        let stride = (others.len() / OTHERS).max(1);
        for slug in others.into_iter().step_by(stride).take(OTHERS) {
            let keys = [Style::ThreeD, Style::Flat].map(|style| Key::new(style, &slug, 0));
            let keys: Vec<Key> = keys.into_iter().filter(|key| key.exists(self.packages)).collect();
            let changes = Change::all().into_iter().filter(|change| !matches!(change, Change::Ground(_)));
            let changes: Vec<Change> = changes.collect();
            let changed = keys.iter().flat_map(|key| changes.iter().map(|change| key.changed(*change)));
            let candidates: Vec<Key> = keys.iter().cloned().chain(changed).collect();
            for key in &keys {
                changes.iter().for_each(|change| self.change(key, *change, &candidates));
            }
        }
    }

    fn change(&mut self, source: &Key, change: Change, candidates: &[Key]) {
        let (category, words) = match change {
            Change::None => return,
            Change::Grey => ("global/greyscale", String::new()),
            Change::Sepia => ("global/sepia", String::new()),
            Change::Invert => ("global/invert", String::new()),
            Change::Mirror => ("global/mirror", String::new()),
            Change::Turn(turns) => ("global/rotate", (90 * u32::from(turns)).to_string()),
            Change::Ground(index) => {
                // From another ground to this one and to white, too.
                let other = Change::Ground((index + 1) % GROUNDS.len());
                let ground = |change: Change| source.changed(change);
                let words = GROUNDS[index].0.to_owned();
                self.whole("global/background", vec![ground(other)], &ground(change), words, candidates);
                self.whole("global/background", vec![ground(change)], source, "white".to_owned(), candidates);
                ("global/background", GROUNDS[index].0.to_owned())
            }
        };
        self.whole(category, vec![source.clone()], &source.changed(change), words, candidates);
    }

    fn whole(&mut self, category: &'static str, sources: Vec<Key>, target: &Key, words: String, candidates: &[Key]) {
        self.pairs.push(Pair {
            category,
            sources,
            target: target.clone(),
            words,
            second: String::new(),
            style: String::new(),
            combination: target.path(),
            candidates: candidates.to_vec(),
        });
    }

    /// Every picture from its name alone.
    fn generations(&mut self) {
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
                    // The same in other styles and tones, and some other pictures of this style.
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

    /// A picture by its name, in the style of another one.
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

    /// Edits within a set and a change of style in one: the source comes in another style than the target.
    fn compound(&mut self) {
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
/// How far, in the list of subjects, the examples of a style are from what is redrawn.
const EXAMPLES: [usize; 6] = [1, 7, 31, 43, 59, 83];
/// Examples of each look.
const LOOKS: usize = 2;
/// Examples of the style of each picture by its name.
const LIKE: usize = 2;
/// Pictures without a name of which changed pictures are made.
const OTHERS: usize = 150;

/// Things and faces with their names.
fn subjects() -> Vec<(String, String)> {
    let things = THINGS.iter().map(|slug| ((*slug).to_owned(), slug.replace("-face", "").replace('-', " ")));
    let faces = FACES.iter().map(|(slug, words)| ((*slug).to_owned(), format!("{words} face")));
    things.chain(faces).collect()
}

/// People at work, and people.
fn roles() -> Vec<String> {
    let people = GENDERS.map(|(_, noun, _)| noun.to_owned());
    let working = ROLES.iter().flat_map(|(role, _)| GENDERS.map(|(start, ..)| format!("{start}{role}")));
    let hair = HAIRS.iter().flat_map(|(hair, _)| GENDERS.map(|(_, noun, _)| format!("{noun}-{hair}")));
    people.into_iter().chain(working).chain(hair).collect()
}

/// Everything with a name of its own, and whether it comes in tones.
fn names() -> Vec<(String, String, bool)> {
    let mut names: Vec<(String, String, bool)> = subjects().into_iter().map(|(s, w)| (s, w, false)).collect();
    let mut add = |slug: &str, words: String, tones| names.push((slug.to_owned(), words, tones));
    for (_, noun, _) in GENDERS {
        add(noun, format!("a {noun}"), true);
        HAIRS.iter().for_each(|(hair, words)| add(&format!("{noun}-{hair}"), format!("a {noun} with {words}"), true));
    }
    for (role, words) in ROLES {
        add(role, format!("a {words}"), true);
        add(&format!("man-{role}"), format!("a man {words}"), true);
        add(&format!("woman-{role}"), format!("a woman {words}"), true);
    }
    HANDS.iter().for_each(|(slug, words)| add(slug, (*words).to_owned(), true));
    for (what, members) in COLOURED {
        members.iter().for_each(|(slug, words)| add(slug, format!("a {words} {what}"), false));
    }
    CLOCKS.iter().for_each(|(slug, words)| add(slug, format!("a clock at {words}"), false));
    MOONS.iter().for_each(|(slug, words)| add(slug, format!("a {words} moon"), false));
    ARROWS.iter().for_each(|(slug, words)| add(slug, format!("an arrow pointing {words}"), false));
    KEYCAPS.iter().for_each(|(slug, words)| add(slug, format!("the number {words}"), false));
    LETTERS.iter().for_each(|(slug, words)| add(slug, format!("the text {words}"), false));
    SIGNS.iter().for_each(|(slug, words)| add(slug, format!("a {words} sign"), false));
    names
}
