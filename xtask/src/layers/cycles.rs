//! Cycles between the top-level modules of one crate.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::modules::Edges;

/// Lists the strongly connected components of more than one module, each with a witness of each edge in it.
pub(super) fn findings(name: &str, edges: &Edges) -> Vec<String> {
    components(edges)
        .iter()
        .map(|component| finding(name, component, edges))
        .collect()
}

/// The components, in alphabetical order: the modules of one lead to each other.
fn components(edges: &Edges) -> BTreeSet<Vec<&str>> {
    edges
        .keys()
        .map(|(module, _)| {
            let reached = reached_from(module, edges);
            reached
                .into_iter()
                .filter(|other| reached_from(other, edges).contains(module.as_str()))
                .collect::<Vec<_>>()
        })
        .filter(|component| component.len() > 1)
        .collect()
}

/// The modules that edges lead to, directly or through others.
fn reached_from<'a>(module: &str, edges: &'a Edges) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut ends = vec![module];
    while let Some(end) = ends.pop() {
        for (from, to) in edges.keys() {
            if from == end && reached.insert(to.as_str()) {
                ends.push(to);
            }
        }
    }
    reached
}

fn finding(name: &str, component: &[&str], edges: &Edges) -> String {
    let mut text = format!(
        "{name}: its modules {} form a cycle; move what they share to a module below them, or join them",
        component.join(", ")
    );
    for ((from, to), witnesses) in edges {
        if !component.contains(&from.as_str()) || !component.contains(&to.as_str()) {
            continue;
        }
        if let Some(first) = witnesses.first() {
            let (file, line, path) = (first.file.display(), first.line, &first.path);
            // Writing to a string does not fail.
            let _ = write!(text, "\n  {from} -> {to}: {file}:{line} ({path})");
            if witnesses.len() > 1 {
                let _ = write!(text, " and {} more", witnesses.len() - 1);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::layers::modules::Witness;

    fn edges(pairs: &[(&str, &str, usize)]) -> Edges {
        let mut edges = Edges::new();
        for (from, to, line) in pairs {
            let witness = Witness {
                file: PathBuf::from(format!("{from}.rs")),
                line: *line,
                path: format!("crate::{to}"),
            };
            let pair = ((*from).to_owned(), (*to).to_owned());
            edges.entry(pair).or_default().insert(witness);
        }
        edges
    }

    #[test]
    fn without_a_cycle_nothing_is_found() {
        assert_eq!(
            findings("k", &edges(&[("a", "b", 1), ("a", "c", 2), ("b", "c", 3)])),
            [""; 0]
        );
    }

    #[test]
    fn each_component_is_found_with_its_own_edges() {
        let found = findings(
            "k",
            &edges(&[
                ("a", "b", 2),
                ("a", "b", 7),
                ("b", "c", 3),
                ("c", "a", 4),
                ("c", "d", 5),
                ("d", "e", 6),
                ("e", "d", 1),
            ]),
        );
        let remedy = "form a cycle; move what they share to a module below them, or join them";
        assert_eq!(
            found,
            [
                format!(
                    "k: its modules a, b, c {remedy}\n  a -> b: a.rs:2 (crate::b) and 1 more\n  \
                     b -> c: b.rs:3 (crate::c)\n  c -> a: c.rs:4 (crate::a)"
                ),
                format!("k: its modules d, e {remedy}\n  d -> e: d.rs:6 (crate::e)\n  e -> d: e.rs:1 (crate::d)"),
            ]
        );
    }
}
