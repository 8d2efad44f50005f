//! The tables of docs/options.md.

use std::collections::BTreeSet;
use std::path::Path;

/// A row of a table: the header of its first column, its names without backquotes, and its other cells.
pub struct Row {
    pub header: String,
    pub names: Vec<String>,
    pub cells: Vec<String>,
}

impl Row {
    pub fn otherwise(&self) -> &str {
        self.cells.last().unwrap()
    }
}

/// Returns all rows, in order.
pub fn rows() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut rows = Vec::new();
    let (mut header, mut columns) = (String::new(), 0);
    for line in text.lines() {
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            (header, columns) = (String::new(), 0);
            continue;
        };
        let mut cells: Vec<String> = cells.split('|').map(|cell| cell.trim().to_owned()).collect();
        if cells[0].starts_with("---") {
            continue;
        }
        if columns == 0 {
            (header, columns) = (cells.remove(0), cells.len());
            continue;
        }
        let names = quoted(&cells.remove(0));
        assert_eq!(cells.len(), columns, "{line}");
        rows.push(Row {
            header: header.clone(),
            names,
            cells,
        });
    }
    rows
}

/// Returns the names of a cell: those in backquotes.
pub fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the type and the name of each option, for rows that `chosen` accepts.
pub fn options(chosen: impl Fn(&Row) -> bool) -> BTreeSet<(String, String)> {
    let rows = rows().into_iter().filter(chosen);
    rows.filter_map(|row| {
        let of = quoted(row.header.strip_prefix("Option of ")?).remove(0);
        Some(row.names.into_iter().map(move |name| (of.clone(), name)))
    })
    .flatten()
    .collect()
}
