//! How each kind of edit is asked for: wordings to train on, and others that are held out.

/// Wordings of one category; `{}` is what the edit aims at, `{1}` a second word where there is one.
pub struct Wordings {
    pub train: &'static [&'static str],
    pub held_out: &'static [&'static str],
}

/// The wordings of a category.
pub fn of(category: &str) -> Wordings {
    let (train, held_out): (&[&str], &[&str]) = match category {
        "global/style" => (
            &["redraw it in {} style", "make it {}", "turn this into {} style", "change the style to {}"],
            &["change it to {} style", "redraw this in {}"],
        ),
        "global/greyscale" => (
            &["make it greyscale", "turn it black and white", "remove all colour", "convert it to greyscale"],
            &["turn this into greyscale", "make it black and white"],
        ),
        "global/sepia" => (
            &["make it sepia", "give it a sepia tone", "turn it into a sepia photo", "convert it to sepia"],
            &["turn this into sepia", "change the tone to sepia"],
        ),
        "global/invert" => (
            &["invert the colours", "make it a negative", "invert it", "turn it into a negative"],
            &["convert it to a negative", "invert all colour"],
        ),
        "global/background" => (
            &["make the background {}", "change the background to {}", "put it on {}", "set a {} background"],
            &["give it a {} background", "turn the background {}"],
        ),
        "global/mirror" => (
            &["mirror it", "flip it left to right", "make a mirror image", "mirror the picture"],
            &["flip the picture left to right", "turn it into a mirror image"],
        ),
        "global/rotate" => (
            &["rotate it {} degrees", "turn it by {} degrees", "rotate the picture by {} degrees"],
            &["rotate this by {} degrees", "turn the picture {} degrees"],
        ),
        "local/skin-tone" => (
            &["change the skin tone to {}", "make the skin {}", "give it a {} skin tone", "set the skin tone to {}"],
            &["turn the skin {}", "change the skin to {}"],
        ),
        "local/hair" => (
            &["give {1} {}", "change the hair to {}", "make it {}", "now with {}"],
            &["turn the hair to {}", "change it, give {1} {}"],
        ),
        "local/gender" => (
            &["make it a {}", "change it to a {}", "turn this into a {}", "now as a {}"],
            &["turn it into a {}", "make this a {}"],
        ),
        "local/expression" => (
            &["make the face {}", "change the face to {}", "now it is {}", "turn the face {}"],
            &["make it {}", "change the expression to {}"],
        ),
        "local/colour" => (
            &["make the {1} {}", "change the {1} to {}", "turn the {1} {}", "paint the {1} {}"],
            &["set the {1} to {}", "give the {1} a {} colour"],
        ),
        "local/clock" => (
            &["set the clock to {}", "make it {}", "change the time to {}", "turn the clock to {}"],
            &["set the time to {}", "change the clock to {}"],
        ),
        "local/moon" => (
            &["make it a {} moon", "change the moon to {}", "turn the moon {}", "set the moon to {}"],
            &["make the moon {}", "turn this into a {} moon"],
        ),
        "local/arrow" => (
            &["point the arrow {}", "make the arrow point {}", "turn the arrow {}", "change the arrow to {}"],
            &["make it point {}", "set the arrow to {}"],
        ),
        "character/occupation" => (
            &["make {1} a {}", "turn {1} into a {}", "now as a {}", "the same person as a {}"],
            &["change {1} to a {}", "make the same person a {}"],
        ),
        "style/reference" => (
            &[
                "in the style of the second picture",
                "redraw it in the style of the second picture",
                "use the style of the second picture",
                "make it like the second picture",
            ],
            &["turn it into the style of the second picture", "change the style to the second picture"],
        ),
        "text/keycap" => (
            &["change the number to {}", "make it {}", "write {}", "replace the number with {}"],
            &["set the number to {}", "turn the number into {}"],
        ),
        "text/letter" => (
            &["change the text to {}", "make it say {}", "write {}", "replace the text with {}"],
            &["set the text to {}", "turn the text into {}"],
        ),
        "text/sign" => (
            &["change the sign to {}", "make it a {} sign", "turn it into a {} sign", "replace the sign with {}"],
            &["set the sign to {}", "make the sign {}"],
        ),
        _ => (
            &["{}, {1} style", "a {1} picture of {}", "draw {} in {1} style"],
            &["{} in the {1} style", "a picture of {}, {1} style"],
        ),
    };
    Wordings { train, held_out }
}

/// A wording with its gaps filled.
pub fn fill(wording: &str, words: &str, second: &str) -> String {
    let filled = wording.replace("{1}", second).replace("{}", words);
    let mut words: Vec<&str> = filled.split(' ').collect();
    for index in 1..words.len() {
        let vowel = words[index].starts_with(['a', 'e', 'i', 'o']) && words[index].len() > 1;
        if words[index - 1] == "a" && vowel {
            words[index - 1] = "an";
        }
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const CATEGORIES: [&str; 20] = [
        "global/style",
        "global/greyscale",
        "global/sepia",
        "global/invert",
        "global/background",
        "global/mirror",
        "global/rotate",
        "local/skin-tone",
        "local/hair",
        "local/gender",
        "local/expression",
        "local/colour",
        "local/clock",
        "local/moon",
        "local/arrow",
        "character/occupation",
        "style/reference",
        "text/keycap",
        "text/letter",
        "generate/name",
    ];

    #[test]
    fn an_article_suits_its_word() {
        assert_eq!(fill("make {1} a {}", "office worker", "her"), "make her an office worker");
        assert_eq!(fill("draw {} in {1} style", "a cook", "3d"), "draw a cook in 3d style");
    }

    #[test]
    fn held_out_wordings_are_new_sentences_of_known_words() {
        let words = |text: &str| text.split([' ', ',']).map(str::to_owned).collect::<Vec<_>>();
        let known: BTreeSet<String> =
            CATEGORIES.iter().flat_map(|c| of(c).train).flat_map(|wording| words(wording)).collect();
        for category in CATEGORIES {
            let Wordings { train, held_out } = of(category);
            for wording in held_out {
                assert!(!train.contains(wording), "{category}: {wording}");
                let unknown: Vec<String> = words(wording).into_iter().filter(|w| !known.contains(w)).collect();
                // One synonym at most is new.
                assert!(unknown.len() <= 1, "{category}: {unknown:?}");
            }
        }
    }
}
