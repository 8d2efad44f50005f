//! Items that only tests compile: `#[cfg(test)]`, `#[cfg(all(test, unix))]`, `#[test]`.

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::paths::is_punct;

/// Returns true if the attribute with these words (those between `#[` and `]`) leaves its item to tests.
pub(super) fn is_tests_only(attribute: &TokenStream) -> bool {
    let tokens: Vec<_> = attribute.clone().into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(word)] => word == "test",
        [TokenTree::Ident(word), TokenTree::Group(predicate)] if word == "cfg" => implies_test(predicate.stream()),
        _ => false,
    }
}

fn implies_test(predicate: TokenStream) -> bool {
    let tokens: Vec<_> = predicate.into_iter().collect();
    match &tokens[..] {
        [TokenTree::Ident(word), ..] if word == "test" => true,
        [TokenTree::Ident(word), TokenTree::Group(inner), ..] => {
            let inner: Vec<_> = inner.stream().into_iter().collect();
            let mut branches = inner
                .split(|token| is_punct(token, ','))
                .filter(|branch| !branch.is_empty())
                .map(|branch| implies_test(branch.iter().cloned().collect()));
            if word == "all" {
                branches.any(|implied| implied)
            } else {
                word == "any" && !inner.is_empty() && branches.all(|implied| implied)
            }
        }
        _ => false,
    }
}

/// The index after the item that starts at `tokens[start]`; `start` follows the attribute that was read.
///
/// An item is anything that takes attributes: a declaration, a statement, a field, a variant, an arm of a match.
pub(super) fn after_item(tokens: &[TokenTree], start: usize) -> usize {
    let mut index = start;
    // Further attributes.
    while let [hash, TokenTree::Group(_), ..] = &tokens[index..]
        && is_punct(hash, '#')
    {
        index += 2;
    }
    let ends_at = end_of(&tokens[index..]);
    for (offset, token) in tokens[index..].iter().enumerate() {
        let ends = match token {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && ends_at != End::Semicolon,
            token => is_punct(token, ';') || (ends_at == End::CommaToo && is_punct(token, ',')),
        };
        if ends {
            return index + offset + 1;
        }
    }
    tokens.len()
}

/// The tokens that end an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Semicolon,
    BraceToo,
    CommaToo,
}

fn end_of(item: &[TokenTree]) -> End {
    let words = item.iter().filter_map(|token| match token {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    });
    for word in words {
        match word.as_str() {
            "pub" | "unsafe" | "async" | "default" | "extern" | "const" => {}
            "use" | "static" | "type" | "let" | "crate" => return End::Semicolon,
            "fn" | "mod" | "impl" | "trait" | "struct" | "enum" | "union" | "macro_rules" => return End::BraceToo,
            // `const NAME` against `const fn`.
            _ if matches!(item.iter().find(|token| !is_visibility(token)),
                Some(TokenTree::Ident(ident)) if ident == "const") =>
            {
                return End::Semicolon;
            }
            _ => return End::CommaToo,
        }
    }
    End::CommaToo
}

/// `pub` and the parentheses after it.
fn is_visibility(token: &TokenTree) -> bool {
    match token {
        TokenTree::Ident(ident) => ident == "pub",
        TokenTree::Group(group) => group.delimiter() == Delimiter::Parenthesis,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    fn tokens(source: &str) -> TokenStream {
        TokenStream::from_str(source).expect("tokens")
    }

    #[test]
    fn the_predicate_has_to_imply_test() {
        for attribute in [
            "test",
            "cfg(test)",
            "cfg(all(unix, test))",
            "cfg(any(test, all(test, unix)))",
        ] {
            assert!(is_tests_only(&tokens(attribute)), "{attribute}");
        }
        for attribute in [
            "cfg(unix)",
            "cfg(not(test))",
            "cfg(any(test, unix))",
            "cfg(any())",
            "cfg_attr(test, allow(x))",
            "doc = \"test\"",
            "cfg(feature = \"test\")",
        ] {
            assert!(!is_tests_only(&tokens(attribute)), "{attribute}");
        }
    }

    #[test]
    fn items_of_all_kinds_end_where_the_next_begins() {
        for item in [
            "mod tests { x; }",
            "mod tests;",
            "use crate::{a, b};",
            "pub(crate) use crate::{a, b};",
            "#[inline] pub(crate) const unsafe fn f<A, B>(a: A) -> B where A: C, B: D { x; }",
            "pub const X: [u8; { 1 }] = { [1] };",
            "const X: U = U { a, b };",
            "static X: U = U { a, b };",
            "type A = B<C, D>;",
            "let x = { y };",
            "struct A<B, C>(B, C);",
            "struct A { b: B, c: C }",
            "impl<A, B> C<A> for B { fn f() {} }",
            "fn required<A, B>(a: A);",
            "field: Type,",
            "pub(crate) field: Type,",
            "Variant { a: A },",
            "A => b,",
            "A | B => { c }",
            "f(a, b);",
        ] {
            let both: Vec<_> = tokens(&format!("{item} NEXT NEXT")).into_iter().collect();
            let end = after_item(&both, 0);
            let rest: TokenStream = both[end..].iter().cloned().collect();
            let rest = rest.to_string();
            assert_eq!(rest.trim_start_matches(", "), "NEXT NEXT", "{item}");
        }
    }
}
