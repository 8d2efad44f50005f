//! Changes of the whole image: styles (by words and by example), colours, backgrounds, rotations.

use std::collections::BTreeSet;

use super::key::{BACKGROUNDS, Change, Key, Style, TONES};
use super::named::{names, subjects};
use super::pairs::{EXAMPLES, PEOPLE_STYLES, Pair, Pairs};

impl Pairs<'_> {
    /// Adds changes of the whole image for things and faces.
    pub(super) fn whole_images(&mut self) {
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

    /// Adds changes to the look of a second image: greyscale, sepia or inverted. Without these, most images exist in one
    /// other style only, and a model could ignore the second image.
    fn looks(&mut self, source: &Key, index: usize, candidates: &[Key]) {
        // High contrast has no colours to lose, and black in sepia is black.
        let looks = [Change::Invert, Change::Sepia, Change::Grey];
        let looks = if source.style == Style::Contrast {
            &looks[..1]
        } else {
            &looks[..]
        };
        let own = looks
            .iter()
            .map(|change| source.changed(*change))
            .filter(|key| !candidates.contains(key));
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

    /// Adds changes of style for people, hands, signs and all others that `whole_images` excludes.
    pub(super) fn other_styles(&mut self) {
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

    /// Adds rotations and colours of images without a name in the dataset, so that a model learns them for any image.
    pub(super) fn other_images(&mut self) {
        let named: BTreeSet<String> = names().into_iter().map(|(slug, ..)| slug).collect();
        let toned = |slug: &str| TONES.iter().any(|(_, end)| !end.is_empty() && slug.ends_with(end));
        let mut others: Vec<String> = self.packages.flat.keys().cloned().collect();
        others.retain(|slug| !named.contains(slug) && !toned(slug));
        others.sort();
        let stride = (others.len() / OTHERS).max(1);
        for slug in others.into_iter().step_by(stride).take(OTHERS) {
            let keys = [Style::ThreeD, Style::Flat].map(|style| Key::new(style, &slug, 0));
            let keys: Vec<Key> = keys.into_iter().filter(|key| key.exists(self.packages)).collect();
            let changes = Change::all()
                .into_iter()
                .filter(|change| !matches!(change, Change::Background(_)));
            let changes: Vec<Change> = changes.collect();
            let changed = keys
                .iter()
                .flat_map(|key| changes.iter().map(|change| key.changed(*change)));
            let candidates: Vec<Key> = keys.iter().cloned().chain(changed).collect();
            for key in &keys {
                changes.iter().for_each(|change| self.change(key, *change, &candidates));
            }
        }
    }

    /// Adds one change of an image.
    fn change(&mut self, source: &Key, change: Change, candidates: &[Key]) {
        let (category, words) = match change {
            Change::None => return,
            Change::Grey => ("global/greyscale", String::new()),
            Change::Sepia => ("global/sepia", String::new()),
            Change::Invert => ("global/invert", String::new()),
            Change::Mirror => ("global/mirror", String::new()),
            Change::Turn(turns) => ("global/rotate", (90 * u32::from(turns)).to_string()),
            Change::Background(index) => {
                // From another background to this one, and from this one to white.
                let other = Change::Background((index + 1) % BACKGROUNDS.len());
                let on = |change: Change| source.changed(change);
                let words = BACKGROUNDS[index].0.to_owned();
                self.whole("global/background", vec![on(other)], &on(change), words, candidates);
                self.whole(
                    "global/background",
                    vec![on(change)],
                    source,
                    "white".to_owned(),
                    candidates,
                );
                ("global/background", BACKGROUNDS[index].0.to_owned())
            }
        };
        self.whole(
            category,
            vec![source.clone()],
            &source.changed(change),
            words,
            candidates,
        );
    }

    /// Adds one pair.
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
}

/// Examples of each look.
const LOOKS: usize = 2;

/// Number of images without a name to change.
const OTHERS: usize = 150;
