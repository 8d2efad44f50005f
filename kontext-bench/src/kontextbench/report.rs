//! Report of a complete run: its results as tables, and the page.

use std::fmt::Write;
use std::path::PathBuf;

use kontext_core::{Error, Result};

use super::run_folder::Writer;
use super::{Bench, COLUMNS, Column, Latency, Page, Record, RunFolder, RunInfo, Timing, score_report, scores};
use crate::cell::{self, markdown};

/// Writes everything derived from the records, which are in the bench's order; returns the report's path.
///
/// ```text
/// results.jsonl, results.csv    the records
/// report.md                     means by category, scores of judges, and problems of the bench
/// page.html                     source, instruction and result of every pair
/// timings/latency.md            latency of the edits
/// ```
pub(super) fn write(bench: &Bench, folder: &RunFolder, writer: &Writer, records: &[Record]) -> Result<PathBuf> {
    let timings: Vec<Timing> = bench.pairs.iter().filter_map(|pair| folder.timing(pair)).collect();
    let mut lines = String::new();
    for record in records {
        let line = serde_json::to_string(record).map_err(|error| Error::io(folder.path())(error.into()))?;
        lines.push_str(&line);
        lines.push('\n');
    }
    writer.bytes("results.jsonl", lines.as_bytes())?;
    writer.bytes(
        "results.csv",
        &csv(records).map_err(|error| Error::io(folder.path())(error.into()))?,
    )?;
    writer.bytes("page.html", Page::of(bench, folder).html()?.as_bytes())?;
    if let Some(latency) = Latency::of(&timings) {
        writer.bytes("timings/latency.md", latency.to_string().as_bytes())?;
    }
    let scores = score_report(&scores::current(bench, folder)?);
    writer.bytes("report.md", text(bench, &folder.info()?, records, &scores).as_bytes())?;
    Ok(folder.path().join("report.md"))
}

/// Writes the report of a run again, if it is a complete run of this bench; returns its path.
pub(super) fn again(bench: &Bench, folder: &RunFolder) -> Result<Option<PathBuf>> {
    let info = folder.info()?;
    let records: Vec<Record> = bench.pairs.iter().filter_map(|pair| folder.record(pair)).collect();
    if records.len() < bench.pairs.len() || info.bench != bench.digest() {
        return Ok(None);
    }
    let (folder, writer) = RunFolder::create(folder.path(), &info)?;
    write(bench, &folder, &writer, &records).map(Some)
}

fn csv(records: &[Record]) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    let own = ["key", "category", "instruction", "seed", "width", "height"];
    writer.write_record(own.into_iter().chain(COLUMNS.iter().map(|column| column.name)))?;
    for record in records {
        let numbers = [
            record.seed.to_string(),
            record.width.to_string(),
            record.height.to_string(),
        ];
        let own = [&record.key, &record.category, &record.instruction]
            .into_iter()
            .map(|text| cell::csv(text).into_owned())
            .chain(numbers);
        let value = |column: &Column| {
            (column.value)(&record.measures)
                .map(|v| v.to_string())
                .unwrap_or_default()
        };
        writer.write_record(own.chain(COLUMNS.iter().map(value)))?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

fn text(bench: &Bench, info: &RunInfo, records: &[Record], scores: &str) -> String {
    let mut text = format!(
        "# KontextBench: {}\n\n{}.\n\n",
        markdown(&info.name),
        markdown(&bench.to_string())
    );
    let all: Vec<&Record> = records.iter().collect();
    let used = used(&all);
    let titles: Vec<&str> = used.iter().map(|column| column.title).collect();
    // Formatting into a string cannot fail.
    let _ = writeln!(text, "| category | n | {} |", titles.join(" | "));
    let _ = writeln!(text, "| --- | ---: |{}", " ---: |".repeat(used.len()));
    for row in means(&all, &used) {
        let row: Vec<String> = row.iter().map(|text| markdown(text)).collect();
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text.push_str("\nMeans, with the ends of their intervals of 95 %: by bootstrap over pairs, and Wilson's for right and copied.\n\n");
    for Column { title, meaning, .. } in used {
        let _ = writeln!(text, "- {title}: {meaning}");
    }
    if !scores.is_empty() {
        let _ = write!(text, "\n{scores}");
    }
    text.push_str("\n| setting | value |\n| --- | --- |\n");
    for (name, value) in info.facts() {
        let _ = writeln!(text, "| {} | {} |", markdown(&name), markdown(&value));
    }
    if !bench.problems.is_empty() {
        text.push_str("\nWhat is wrong with the bench:\n\n");
        for problem in &bench.problems {
            let _ = writeln!(text, "- {}", markdown(&problem.to_string()));
        }
    }
    text
}

/// Returns the columns for which any record has a value.
pub(super) fn used(records: &[&Record]) -> Vec<Column> {
    COLUMNS
        .into_iter()
        .filter(|column| records.iter().any(|r| (column.value)(&r.measures).is_some()))
        .collect()
}

/// Formats a row for each category and one for all: name, number of pairs, and each column's mean.
pub(super) fn means(records: &[&Record], columns: &[Column]) -> Vec<Vec<String>> {
    let mut names: Vec<&str> = records.iter().map(|record| record.category.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let row = |name: &str, records: &[&Record]| {
        let mean = |column: &Column| {
            let values: Vec<f64> = records
                .iter()
                .filter_map(|record| (column.value)(&record.measures))
                .collect();
            column.mean(&values)
        };
        [name.to_owned(), records.len().to_string()]
            .into_iter()
            .chain(columns.iter().map(mean))
            .collect()
    };
    let category_row = |name: &&str| {
        let in_category: Vec<&Record> = records
            .iter()
            .copied()
            .filter(|record| record.category == *name)
            .collect();
        row(name, &in_category)
    };
    names.iter().map(category_row).chain([row("all", records)]).collect()
}
