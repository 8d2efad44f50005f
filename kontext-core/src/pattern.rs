//! Name patterns in which `*` matches any text.

/// Returns `true` if `name` matches the pattern; `*` matches any text.
///
/// # Example
/// ```
/// use kontext_core::pattern::matches;
/// assert!(matches("double_blocks.*.*_attn.qkv", "double_blocks.12.txt_attn.qkv"));
/// assert!(!matches("double_blocks.*.*_attn.qkv", "double_blocks.12.txt_attn.proj"));
/// ```
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let Some(last) = parts.next_back() else {
        return rest.is_empty();
    };
    // The first place of each part leaves most to the next one, so none has to be tried again.
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_name_layers() {
        assert!(matches("*", "img_in") && matches("img_in", "img_in") && !matches("img", "img_in"));
        assert!(matches(
            "*_norm.scale",
            "double_blocks.0.img_attn.norm.query_norm.scale"
        ));
        assert!(matches("a*b*c", "abc") && !matches("a*b*c", "acb"));
        assert!(
            matches("", "") && !matches("", "a") && matches("**", "") && matches("a*", "a") && !matches("a*a", "a")
        );
        assert!(matches("*é*", "aéb") && matches("*ab", "aab") && matches("*a*ab", "aab") && !matches("*ab*ab", "aab"));
    }

    #[test]
    fn many_wildcards_take_no_long_time() {
        let pattern = "*a".repeat(100_000) + "b";
        assert!(!matches(&pattern, &"a".repeat(100_001)));
        assert!(!matches(&("*a".repeat(25) + "b"), &"a".repeat(40)));
    }
}
