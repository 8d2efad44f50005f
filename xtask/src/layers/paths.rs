//! Paths in tokens of Rust: `crate::a::b` in an expression, and each path of the tree `crate::{a::b, c}`.

use proc_macro2::{Delimiter, TokenTree};

/// A path as the source spells it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Spelled {
    /// Never empty: `crate`, `super`, …
    pub(super) segments: Vec<String>,
    /// The path ends in `::*`.
    pub(super) glob: bool,
    /// The name after `as`.
    pub(super) alias: Option<String>,
    /// The line of the last segment.
    pub(super) line: usize,
}

/// Reads the path or the use tree that starts at `tokens[start]`; returns its paths and the index of the token after
/// them.
pub(super) fn read(tokens: &[TokenTree], start: usize) -> (Vec<Spelled>, usize) {
    let mut paths = Vec::new();
    let end = read_onto(&Spelled::default(), tokens, start, &mut paths);
    (paths, end)
}

fn read_onto(prefix: &Spelled, tokens: &[TokenTree], start: usize, paths: &mut Vec<Spelled>) -> usize {
    let mut path = prefix.clone();
    let mut index = start;
    loop {
        match tokens.get(index) {
            Some(TokenTree::Ident(ident)) => {
                path.segments.push(name(&ident.to_string()));
                path.line = ident.span().start().line;
                index += 1;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                let tree: Vec<_> = group.stream().into_iter().collect();
                for branch in tree.split(|token| is_punct(token, ',')) {
                    read_onto(&path, branch, 0, paths);
                }
                return index + 1;
            }
            Some(token) if is_punct(token, '*') => {
                path.glob = true;
                path.line = token.span().start().line;
                paths.push(path);
                return index + 1;
            }
            // A turbofish, a variable of a macro, an empty branch or one that starts with `::`.
            _ => break,
        }
        if !is_separator(tokens, index) {
            break;
        }
        index += 2;
    }
    if let [TokenTree::Ident(word), TokenTree::Ident(alias), ..] = &tokens[index..]
        && word == "as"
    {
        path.alias = Some(name(&alias.to_string()));
        index += 2;
    }
    if path.segments.len() > prefix.segments.len() {
        paths.push(path);
    }
    index
}

/// Returns true if `::` starts at `tokens[index]`.
pub(super) fn is_separator(tokens: &[TokenTree], index: usize) -> bool {
    matches!(tokens.get(index..index + 2), Some([first, second]) if is_punct(first, ':') && is_punct(second, ':'))
}

pub(super) fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

/// The name of an identifier, raw or not.
pub(super) fn name(ident: &str) -> String {
    ident.strip_prefix("r#").unwrap_or(ident).to_owned()
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use proc_macro2::TokenStream;

    use super::*;

    fn read_all(source: &str) -> (Vec<String>, usize) {
        let tokens: Vec<_> = TokenStream::from_str(source).expect("tokens").into_iter().collect();
        let (paths, end) = read(&tokens, 0);
        let paths = paths.iter().map(|path| {
            let glob = if path.glob { "::*" } else { "" };
            let alias = path
                .alias
                .as_ref()
                .map(|alias| format!(" as {alias}"))
                .unwrap_or_default();
            format!("{}{glob}{alias} @{}", path.segments.join("::"), path.line)
        });
        (paths.collect(), end)
    }

    #[test]
    fn a_tree_has_a_path_for_each_leaf() {
        let (paths, _) = read_all("crate::{\n a::{self, B as C},\n r#b::*,\n super::c,\n}");
        assert_eq!(
            paths,
            [
                "crate::a::self @2",
                "crate::a::B as C @2",
                "crate::b::* @3",
                "crate::super::c @4"
            ]
        );
    }

    #[test]
    fn a_path_ends_before_what_follows_it() {
        assert_eq!(read_all("crate::a::f(x)"), (vec!["crate::a::f @1".to_owned()], 7));
        assert_eq!(read_all("crate::a::<B>()"), (vec!["crate::a @1".to_owned()], 6));
        assert_eq!(read_all("crate::$a"), (vec!["crate @1".to_owned()], 3));
        assert_eq!(read_all("{::a, b}").0, ["b @1"]);
    }
}
