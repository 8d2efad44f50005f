//! The tables and curves of walks, and the file between whose marks they go.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use kontext_bench::cell::markdown;
use kontext_bench::drift::{Column, Drift, Networks, Panel};
use kontext_cli::read;
use kontext_cli::walker::Method;
use kontext_cli::walks::Walk;

/// Writes a row of the table of maps: means of its columns.
pub(super) fn row(table: &mut String, name: &str, values: &[Vec<f64>; 5]) {
    let [covered, kept, naive, plain, put_back] = values
        .each_ref()
        .map(|values| values.iter().sum::<f64>() / values.len() as f64);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let (covered, kept, naive) = (percent(covered), percent(kept), percent(naive));
    let count = values[0].len();
    // Writing to a string does not fail.
    let _ = writeln!(
        table,
        "| {name} | {count} | {covered} | {kept} | {naive} | {plain:.2} | {put_back:.2} |"
    );
}

/// Returns the tables of walks of one kind.
pub(super) fn tables(title: &str, walks: &[Walk], drift: &Drift, networks: Networks<'_>) -> anyhow::Result<String> {
    let mut kinds = BTreeMap::<&str, usize>::new();
    for walk in walks {
        *kinds.entry(&walk.category).or_default() += 1;
    }
    let kinds: Vec<String> = kinds
        .iter()
        .map(|(category, count)| format!("{category} {count}"))
        .collect();
    let network = networks
        .perceptual
        .map_or(String::new(), |network| format!(" PDist is {}.", network.name()));
    let identity = match networks.identity() {
        Some(embedder) => format!(
            "Identity with the first image ({}), 1 for the same subject:\n\n{}\n",
            markdown(embedder.name()),
            drift.turn_table(&Column::START_IDENTITY)?
        ),
        None => String::new(),
    };
    let (latents, pixels) = (Method::Latents.name(), Method::Pixels.name());
    Ok(format!(
        "### {title}\n\n{} walks of {} turns; first edits: {}.{network}\n\nPSNR to the truth of each turn, in dB:\n\n{}\n\
         PSNR to the first image, where the truth still agrees with it, in dB:\n\n{}\n{identity}After the last turn:\n\n{}\n\
         After the last turn, more than `{pixels}` on the same walks:\n\n{}\n\
         After the last turn, more than `{latents}` on the same walks:\n\n{}\n",
        walks.len(),
        drift.turns(),
        kinds.join(", "),
        drift.turn_table(&Column::PSNR)?,
        drift.turn_table(&Column::UNTOUCHED)?,
        drift.last_table()?,
        drift.difference_table(pixels)?,
        drift.difference_table(latents)?,
    ))
}

/// Returns the panels of the columns that have values in all walks.
pub(super) fn panels<'a>(drifts: &'a [(&'a str, Drift)]) -> Vec<Panel<'a>> {
    let columns = [Column::PSNR, Column::UNTOUCHED, Column::DISTANCE];
    let drawn = |column: &Column| {
        let has = |drift: &Drift| {
            let method = drift.methods().next().unwrap_or_default().to_owned();
            drift.curve(&method, column).is_ok_and(|curve| !curve.is_empty())
        };
        drifts.iter().all(|(_, drift)| has(drift))
    };
    let columns = columns.into_iter().filter(drawn);
    columns
        .flat_map(|column| drifts.iter().map(move |(title, drift)| Panel { title, drift, column }))
        .collect()
}

const BEGIN: &str = "<!-- numbers: written by the example `drift` -->\n";
const END: &str = "<!-- end of numbers -->\n";

/// Returns the file's text with `text` between its marks; only `text` if there is no such file.
pub(super) fn marked(path: &Path, text: &str) -> anyhow::Result<String> {
    let numbers = format!("{BEGIN}\n{}\n\n{END}", text.trim());
    if !path.is_file() {
        return Ok(numbers);
    }
    let old = read(path)?;
    let parts = old
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| {
        format!(
            "{} has no two marks between which the numbers go; put {BEGIN:?} and {END:?} there",
            path.display()
        )
    })?;
    Ok(format!("{before}{numbers}{after}"))
}
