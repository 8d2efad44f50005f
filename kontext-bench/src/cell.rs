//! Texts of a bench or a model in the cells of tables. They are untrusted: they must stay text in a
//! spreadsheet and in Markdown.

use std::borrow::Cow;

/// First characters by which a spreadsheet takes a cell for a formula, or which it drops to look at the next.
const FORMULA: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];
/// The sign before a text that is to be shown as it is.
const SIGN: char = '\'';

/// Returns a text as a CSV field that no spreadsheet takes for a formula: `'` is put before one. Quotes and
/// commas are left to the CSV writer; numbers are written without this function.
///
/// [`text_of_csv`] is the inverse.
///
/// # Example
/// ```
/// use kontext_bench::cell::{csv, text_of_csv};
/// assert_eq!(csv("=1+1"), "'=1+1");
/// assert_eq!(csv("make it red"), "make it red");
/// assert_eq!(text_of_csv("'=1+1"), "=1+1");
/// ```
#[must_use]
pub fn csv(text: &str) -> Cow<'_, str> {
    // A text that looks like a result of this function gets the sign, too, so that each result has one text.
    let looks_signed = text
        .strip_prefix(SIGN)
        .is_some_and(|rest| rest.starts_with(SIGN) || rest.starts_with(FORMULA));
    if text.starts_with(FORMULA) || looks_signed {
        Cow::Owned(format!("{SIGN}{text}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// Returns the text of a field that [`csv()`] has made.
#[must_use]
pub fn text_of_csv(field: &str) -> &str {
    match field.strip_prefix(SIGN) {
        Some(text) if text.starts_with(SIGN) || text.starts_with(FORMULA) => text,
        _ => field,
    }
}

/// Escapes a text for a cell or a line of Markdown, in which it makes no HTML, link, image, code or border of
/// a table. Addresses stay text where a renderer makes links of them by itself, as GitHub does.
///
/// # Example
/// ```
/// use kontext_bench::cell::markdown;
/// assert_eq!(markdown("<b>|</b>\n[a](b)"), "&lt;b&gt;\\|&lt;/b&gt; \\[a](b)");
/// ```
#[must_use]
pub fn markdown(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let (before, after) = (&text[..at], &text[at + c.len_utf8()..]);
        match c {
            '\\' | '|' | '[' | '`' => escaped.extend(['\\', c]),
            ':' if after.starts_with("//") => escaped.push_str("\\:"),
            '.' if ends_with_www(before) => escaped.push_str("\\."),
            // A renderer looks for mail addresses after it has resolved escapes and entities; a comment ends the text.
            '@' if before.ends_with(is_of_address) && after.starts_with(is_of_address) => {
                escaped.push_str("<!-- -->@");
            }
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

fn ends_with_www(text: &str) -> bool {
    text.len()
        .checked_sub(3)
        .and_then(|start| text.get(start..))
        .is_some_and(|end| end.eq_ignore_ascii_case("www"))
}

/// Returns `true` for a character of a mail address next to its `@`.
fn is_of_address(c: char) -> bool {
    c.is_alphanumeric() || "._+-".contains(c)
}

/// Escapes a text for HTML, also for an attribute in quotes.
///
/// # Example
/// ```
/// use kontext_bench::cell::html;
/// assert_eq!(html("<a b='\"'>"), "&lt;a b=&#39;&quot;&#39;&gt;");
/// ```
#[must_use]
pub fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 16] = [
        "=cmd|' /C calc'!A0",
        "+1",
        "-1.5",
        "@SUM(1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "＝1",
        "'=1",
        "''=1",
        "''",
        "'",
        "'tis",
        "",
        "make it red, \"please\"",
        " =1",
    ];

    #[test]
    fn no_field_begins_a_formula_and_each_is_read_back() {
        for text in TEXTS {
            let field = csv(text);
            assert!(!field.starts_with(FORMULA), "{field}");
            assert_eq!(text_of_csv(&field), text);
        }
        assert_eq!([csv("'tis"), csv("''"), csv("'")], ["'tis", "'''", "'"]);
    }

    #[test]
    fn a_file_of_hostile_texts_is_read_back_with_its_numbers() {
        let mut writer = ::csv::Writer::from_writer(Vec::new());
        for text in TEXTS {
            writer.write_record([&*csv(text), "-1.5"]).unwrap();
        }
        let bytes = writer.into_inner().unwrap();
        let mut reader = ::csv::ReaderBuilder::new().has_headers(false).from_reader(&bytes[..]);
        let records: Vec<_> = reader.records().map(Result::unwrap).collect();
        assert_eq!(records.len(), TEXTS.len());
        for (record, text) in records.iter().zip(TEXTS) {
            assert_eq!(text_of_csv(&record[0]), text);
            assert_eq!(record[1].parse(), Ok(-1.5));
        }
    }

    #[test]
    fn markdown_has_no_markup_of_a_text() {
        let hostile = "</title><script>alert(5)</script>&lt; ![x](http://a) `|` \\| \u{0}\r\n<http://b>";
        let text = markdown(hostile);
        assert!(!text.contains(['<', '>']) && !text.contains(char::is_control), "{text}");
        assert_eq!(
            text,
            "&lt;/title&gt;&lt;script&gt;alert(5)&lt;/script&gt;&amp;lt; !\\[x](http\\://a) \\`\\|\\` \\\\\\|    \
             &lt;http\\://b&gt;"
        );
    }

    #[test]
    fn markdown_has_no_links_that_a_renderer_makes_of_addresses() {
        // comrak 0.59 with GitHub's extension makes a link of each text, and of no result.
        for (text, expected) in [
            ("see https://a.b/c?d", "see https\\://a.b/c?d"),
            ("ftp://a.b", "ftp\\://a.b"),
            ("www.a.com, Www.a.com", "www\\.a.com, Www\\.a.com"),
            ("a.b+c@d.de", "a.b+c<!-- -->@d.de"),
            ("mailto:a@b.de", "mailto:a<!-- -->@b.de"),
            // No addresses.
            ("10:30, @home, 3 @ 4, a.b, éww.a", "10:30, @home, 3 @ 4, a.b, éww.a"),
        ] {
            assert_eq!(markdown(text), expected);
        }
    }
}
