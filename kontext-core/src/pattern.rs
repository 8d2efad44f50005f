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
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => {
            let tail = name.strip_prefix(start);
            tail.is_some_and(|tail| (0..=tail.len()).any(|at| tail.get(at..).is_some_and(|end| matches(rest, end))))
        }
    }
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
    }
}
