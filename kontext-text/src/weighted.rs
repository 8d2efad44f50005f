//! Weights of words in a prompt, written with parentheses as in ComfyUI.
//!
//! Source: Comfy-Org/ComfyUI `comfy/sd1_clip.py` (`escape_important`, `parse_parentheses`, `token_weights`).

use kontext_core::{Error, Result};

/// Weight of a pair of parentheses without a number.
const STEP: f64 = 1.1;
/// Largest absolute weight. From about 1e4 on the states of a bf16 run hold nothing else.
const LARGEST: f64 = 1000.0;
/// Most pairs of parentheses around a word. ComfyUI ends in Python's limit of recursion.
const DEEPEST: usize = 64;
/// Stand-ins of escaped parentheses while the others are read.
const ESCAPES: [(&str, &str, &str); 2] = [("\\)", "\0\u{1}", ")"), ("\\(", "\0\u{2}", "(")];

/// A piece of a prompt, and its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedText {
    /// The text without the markup.
    pub text: String,
    /// Its weight: 1 leaves it as it is, 0 makes of its tokens those of an empty prompt.
    pub weight: f64,
}

/// Splits a prompt into pieces of one weight each, by ComfyUI's rule.
///
/// * `(a)` multiplies the weight by 1.1, also within others; `(a:1.3)` sets it to 1.3, whatever is around it.
/// * `\(` and `\)` are parentheses of the text. Brackets have no meaning.
/// * A text after the last colon that is no number belongs to the piece: `(a: b)` weighs `a: b` by 1.1.
/// * An opening parenthesis without its closing one is text, with all that follows; so is a closing one too many, after
///   which the next opening one is text, too.
///
/// # Errors
/// [`Error::InvalidArgument`] for a weight that is not a number from -1000 to 1000, and for more than 64 parentheses
/// within each other.
///
/// # Example
/// ```
/// use kontext_text::weighted_texts;
/// let pieces = weighted_texts(r"a (red:1.3) hat \(felt\)")?;
/// let pieces: Vec<(&str, f64)> = pieces.iter().map(|piece| (piece.text.as_str(), piece.weight)).collect();
/// assert_eq!(pieces, [("a ", 1.0), ("red", 1.3), (" hat (felt)", 1.0)]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn weighted_texts(prompt: &str) -> Result<Vec<WeightedText>> {
    let escaped = ESCAPES.iter().fold(prompt.to_owned(), |text, (written, stand_in, _)| {
        text.replace(written, stand_in)
    });
    let mut pieces = Vec::new();
    weigh(&escaped, 1.0, 0, &mut pieces)?;
    for piece in &mut pieces {
        for (_, stand_in, plain) in ESCAPES {
            piece.text = piece.text.replace(stand_in, plain);
        }
    }
    Ok(pieces)
}

/// Appends the pieces of a text whose own weight is `current`.
fn weigh(text: &str, current: f64, depth: usize, pieces: &mut Vec<WeightedText>) -> Result<()> {
    for item in items(text) {
        let inner = item.strip_prefix('(').and_then(|rest| rest.strip_suffix(')'));
        let Some(inner) = inner else {
            pieces.push(WeightedText {
                text: item.to_owned(),
                weight: current,
            });
            continue;
        };
        if depth == DEEPEST {
            let expected = format!("at most {DEEPEST} parentheses within each other; write a number, as in (word:1.3)");
            return Err(Error::invalid("prompt weights", expected, "more"));
        }
        // A colon at the very beginning leaves no text to weigh.
        let colon = inner.rfind(':').filter(|at| *at > 0);
        let given = colon.and_then(|at| Some((&inner[..at], number(&inner[at + 1..])?)));
        let (inner, weight) = given.unwrap_or((inner, current * STEP));
        if !(-LARGEST..=LARGEST).contains(&weight) {
            let expected = format!("a number from -{LARGEST} to {LARGEST}");
            return Err(Error::invalid("weight in a prompt", expected, weight));
        }
        weigh(inner, weight, depth + 1, pieces)?;
    }
    Ok(())
}

/// Splits a text at its outermost parentheses, which stay in the items. The count goes below zero at a closing
/// parenthesis too many.
fn items(text: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut begin, mut level) = (0, 0_i64);
    for (at, character) in text.char_indices() {
        match character {
            '(' => {
                if level == 0 && at > begin {
                    items.push(&text[begin..at]);
                    begin = at;
                }
                level += 1;
            }
            ')' => {
                level -= 1;
                if level == 0 {
                    items.push(&text[begin..=at]);
                    begin = at + 1;
                }
            }
            _ => {}
        }
    }
    if begin < text.len() {
        items.push(&text[begin..]);
    }
    items
}

/// Reads a number as Python's `float` does: with white space around it, and underscores between digits.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let digit = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_digit);
    let between_digits = |at: usize| digit(at.checked_sub(1)) && digit(Some(at + 1));
    let mut underscores = text.match_indices('_');
    if !underscores.all(|(at, _)| between_digits(at)) {
        return None;
    }
    text.replace('_', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(prompt: &str) -> Vec<(String, f64)> {
        let pieces = weighted_texts(prompt).unwrap();
        pieces.into_iter().map(|piece| (piece.text, piece.weight)).collect()
    }

    /// The expected values are those of ComfyUI's functions in Python.
    #[test]
    fn pieces_and_weights_are_those_of_comfyui() {
        let table: [(&str, &[(&str, f64)]); 26] = [
            ("", &[]),
            ("a red hat", &[("a red hat", 1.0)]),
            ("(red)", &[("red", 1.1)]),
            ("a (red) hat", &[("a ", 1.0), ("red", 1.1), (" hat", 1.0)]),
            ("((red))", &[("red", 1.2100000000000002)]),
            ("(red:1.3)", &[("red", 1.3)]),
            ("(red: 1.3 )", &[("red", 1.3)]),
            ("(red:-0.5)", &[("red", -0.5)]),
            ("(red:1_0.5)", &[("red", 10.5)]),
            ("(red:1__0)", &[("red:1__0", 1.1)]),
            ("(red:.5)(hat:1.)", &[("red", 0.5), ("hat", 1.0)]),
            // A number replaces the weight around it, and multiplies that within it.
            ("((red:1.3))", &[("red", 1.3)]),
            ("(a (red) hat:2)", &[("a ", 2.0), ("red", 2.2), (" hat", 2.0)]),
            ("((red):1.3)", &[("red", 1.3 * 1.1)]),
            ("(a: b)", &[("a: b", 1.1)]),
            ("(a:b:0.5)", &[("a:b", 0.5)]),
            ("(:1.3)", &[(":1.3", 1.1)]),
            ("()", &[]),
            ("[red] {hat}", &[("[red] {hat}", 1.0)]),
            (r"\(red\) (hat)", &[("(red) ", 1.0), ("hat", 1.1)]),
            (r"(red \(felt\):1.2)", &[("red (felt)", 1.2)]),
            // Unbalanced.
            ("a (red hat", &[("a ", 1.0), ("(red hat", 1.0)]),
            ("a red) hat", &[("a red) hat", 1.0)]),
            ("a) (red) hat", &[("a) (red) hat", 1.0)]),
            ("((red)", &[("(red", 1.1)]),
            ("(red)) (hat)", &[("red", 1.1), (") (hat)", 1.0)]),
        ];
        for (prompt, expected) in table {
            let expected: Vec<(String, f64)> = expected.iter().map(|(text, w)| ((*text).to_owned(), *w)).collect();
            assert_eq!(pieces(prompt), expected, "{prompt}");
        }
    }

    #[test]
    fn weights_without_a_finite_effect_and_endless_nesting_are_refused() {
        for (prompt, words) in [
            ("(a:1e9)", "expected a number from -1000 to 1000, got 1000000000"),
            ("(a:nan)", "got NaN"),
            ("(a:-inf)", "got -inf"),
        ] {
            let error = weighted_texts(prompt).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid weight in a prompt") && error.ends_with(words),
                "{error}"
            );
        }
        let nested = |depth| format!("{}a:1{}", "(".repeat(depth), ")".repeat(depth));
        assert_eq!(pieces(&nested(DEEPEST)), [("a".to_owned(), 1.0)]);
        let error = weighted_texts(&nested(DEEPEST + 1)).unwrap_err().to_string();
        assert!(error.contains("at most 64 parentheses within each other"), "{error}");
        assert!(weighted_texts(&nested(100_000)).is_err());
        assert_eq!(pieces(&"(".repeat(100_000)).len(), 1);
    }
}
