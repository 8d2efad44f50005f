//! Text files in which the kernel reports numbers.

use std::path::Path;

/// Reads a file; `None` if it is missing or no text, or cannot be opened.
pub(super) fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Returns the number after a name at the start of a line, as in `name 12` or `name:   12 kB`; the unit is not
/// applied.
pub(super) fn number_after(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = rest.strip_prefix(':').unwrap_or(rest);
        let value = rest.strip_prefix([' ', '\t'])?;
        value.split_whitespace().next()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let text = "total_rss_huge 1\ntotal_rss 2\nVmSize:\t   3 kB\nbad x\n";
        assert_eq!(number_after(text, "total_rss"), Some(2));
        assert_eq!(number_after(text, "VmSize"), Some(3));
        assert_eq!((number_after(text, "bad"), number_after(text, "none")), (None, None));
    }
}
