//! People: skin tone, hair, gender and occupation.

use super::key::{Key, Style, TONES};
use super::pairs::{PEOPLE_STYLES, Pair, Pairs};
use super::tables::{GENDERS, HAIRS, HANDS, ROLES};

impl Pairs<'_> {
    /// Adds all edits of people.
    pub(super) fn people(&mut self) {
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
                        let slug = if role.is_empty() {
                            noun.to_owned()
                        } else {
                            format!("{start}{role}")
                        };
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

    /// Adds changes of occupation; the person without one is a source as well.
    fn occupations(&mut self, style: Style, tone: u8, start: &str, noun: &str, pronoun: &str) {
        let working = |role: &str, tone: u8| Key::new(style, &format!("{start}{role}"), tone);
        let plain = Key::new(style, noun, tone);
        for (role, words) in ROLES {
            let target = working(role, tone);
            // Every occupation of this person, and this occupation of other people.
            let mut candidates: Vec<Key> = ROLES.iter().map(|(role, _)| working(role, tone)).collect();
            candidates.extend((0..TONES.len() as u8).map(|tone| working(role, tone)));
            candidates.extend(GENDERS.map(|(start, ..)| Key::new(style, &format!("{start}{role}"), tone)));
            candidates.push(plain.clone());
            candidates.sort();
            candidates.dedup();
            candidates.retain(|key| key.exists(self.packages));
            for source in ROLES.iter().map(|(role, _)| working(role, tone)).chain([plain.clone()]) {
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
}

/// Returns people with and without an occupation.
fn roles() -> Vec<String> {
    let people = GENDERS.map(|(_, noun, _)| noun.to_owned());
    let working = ROLES
        .iter()
        .flat_map(|(role, _)| GENDERS.map(|(start, ..)| format!("{start}{role}")));
    let hair = HAIRS
        .iter()
        .flat_map(|(hair, _)| GENDERS.map(|(_, noun, _)| format!("{noun}-{hair}")));
    people.into_iter().chain(working).chain(hair).collect()
}
