//! Text of files and callers as messages show it.

/// Escapes control characters and marks of writing direction, with which a name of a damaged file could break a
/// line, drive a terminal or reverse its text.
///
/// # Example
/// ```
/// assert_eq!(kontext_core::printable("line\nbreak\0 “é”"), "line\\nbreak\\u{0} “é”");
/// ```
#[must_use]
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_direction(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Escapes the lines of a text one by one, and keeps the breaks between them.
///
/// # Example
/// ```
/// assert_eq!(kontext_core::printable_lines("two\nlines\r\0"), "two\nlines\\r\\u{0}");
/// ```
#[must_use]
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Returns `true` for the characters that change the direction of the text after them.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Shortens a text to `most` characters: its beginning, “…”, and a quarter of them from its end.
///
/// # Example
/// ```
/// assert_eq!(kontext_core::shortened("é123456789", 9), "é12345…89");
/// assert_eq!(kontext_core::shortened("é12345678", 9), "é12345678");
/// ```
#[must_use]
pub fn shortened(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let tail = most / 4;
    let head = most.saturating_sub(tail + 1);
    let end = text.chars().skip(count - tail);
    text.chars().take(head).chain(['…']).chain(end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_and_marks_of_direction_are_escaped_and_joined_emoji_are_not() {
        assert_eq!(
            printable("a\u{1b}[31m\r\u{7f}\u{9b}\u{202e}"),
            "a\\u{1b}[31m\\r\\u{7f}\\u{9b}\\u{202e}"
        );
        let cook = "👨\u{200d}🍳";
        assert_eq!(printable(cook), cook);
    }

    #[test]
    fn a_shortened_text_has_the_length_asked_for() {
        for most in 0..6 {
            let short = shortened("äöüäöüäöü", most);
            assert_eq!(short.chars().count(), most.max(1), "{short}");
        }
    }
}
