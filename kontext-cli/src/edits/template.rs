//! Texts with variables in braces.

use std::collections::BTreeSet;

/// A text with `{name}` for variables; `{{` and `}}` are braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Variable(String),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// A brace without its other one, or without a name.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let (mut pieces, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            plain.push_str(before);
            if after.starts_with("{{") || after.starts_with("}}") {
                plain.push_str(&after[..1]);
                rest = &after[2..];
                continue;
            }
            let inner = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let Some((name, after)) = inner.filter(|(name, _)| !name.contains('{')) else {
                return Err(format!(
                    "a brace has no other one in {text:?}; write {{{{ or }}}} for a brace"
                ));
            };
            let name = name.trim();
            if name.is_empty() {
                return Err(format!("braces without a name in {text:?}; write {{{{}}}} for braces"));
            }
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
            pieces.push(Piece::Variable(name.to_owned()));
            rest = after;
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        Ok(Self(pieces))
    }

    /// Returns the names of the variables.
    pub(super) fn variables(&self) -> BTreeSet<&str> {
        let mut names = BTreeSet::new();
        for piece in &self.0 {
            if let Piece::Variable(name) = piece {
                names.insert(name.as_str());
            }
        }
        names
    }

    /// Returns the text with each variable's value.
    ///
    /// # Errors
    /// The first error of `value`.
    pub(super) fn fill(&self, value: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
        let text = |piece: &Piece| match piece {
            Piece::Text(text) => Ok(text.clone()),
            Piece::Variable(name) => value(name),
        };
        self.0.iter().map(text).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &str) -> Result<String, String> {
        Template::read(text)?.fill(|name| match name {
            "colour" => Ok("red {x}".to_owned()),
            name => Err(format!("no {name}")),
        })
    }

    #[test]
    fn variables_are_filled_and_doubled_braces_are_braces() {
        // A value is not a template.
        assert_eq!(filled("a { colour } hat").unwrap(), "a red {x} hat");
        assert_eq!(filled("{{colour}} {{{colour}}}").unwrap(), "{colour} {red {x}}");
        assert_eq!(filled("").unwrap(), "");
        assert_eq!(filled("ü{colour}é").unwrap(), "üred {x}é");
        assert_eq!(filled("{size}").unwrap_err(), "no size");
        let template = Template::read("{a} {b} {{c}} {a}").unwrap();
        assert_eq!(template.variables().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_brace_on_its_own_is_an_error_that_shows_the_escape() {
        for text in ["{colour", "colour}", "a } b", "{a{b}", "{a}}"] {
            assert!(
                filled(text).unwrap_err().contains("write {{ or }} for a brace"),
                "{text}"
            );
        }
        assert!(filled("{ }").unwrap_err().contains("without a name"));
    }
}
