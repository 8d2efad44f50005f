//! A judge's scores as tables, with published ones next to them.

use std::fmt::Write;

use super::{Anchor, CATEGORIES, KONTEXT_BENCH_ANCHORS, OTHER_ANCHORS, ScoreRecord};
use crate::cell::markdown;
use crate::statistics::{Bootstrap, Estimate, Resamples};

/// Bootstrap resamples for the interval of a mean.
const RESAMPLES: usize = 1000;
/// Seed of the resamples.
const SEED: u64 = 0;
/// Name of the row of means over categories.
const CATEGORY_MEAN: &str = "mean of the categories";

/// A score of a record.
type Score = fn(&ScoreRecord) -> f64;

/// The three scores, by their titles.
const SCORES: [(&str, Score); 3] = [
    ("SC", |record| record.score.semantic_consistency),
    ("PQ", |record| record.score.perceptual_quality),
    ("O", |record| record.score.overall()),
];

/// Formats scores as Markdown: a table for each judge, with means and intervals of 95 %, and the published scores of
/// FLUX.1 Kontext \[dev\] with their judges and sources. Empty without scores.
///
/// O is the mean over edits of the geometric mean of both scores. The mean of the categories is what the anchors of
/// KontextBench give for the whole; its bootstrap resamples the edits of each category.
#[must_use]
pub fn score_report(records: &[ScoreRecord]) -> String {
    let mut text = String::new();
    for of_judge in records.chunk_by(|a, b| a.judge == b.judge) {
        if let Some(first) = of_judge.first() {
            table(&mut text, &first.judge, of_judge);
        }
    }
    if !text.is_empty() {
        anchors(&mut text);
    }
    text
}

/// Writes the table of a judge. Writing to a string does not fail.
fn table(text: &mut String, judge: &str, records: &[ScoreRecord]) {
    let _ = writeln!(text, "## Scores by {}\n", markdown(judge));
    let titles = SCORES.map(|(title, _)| title).into_iter().map(str::to_owned);
    let published = KONTEXT_BENCH_ANCHORS.map(|anchor| format!("published {}", anchor.measure));
    let titles: Vec<String> = titles.chain(published).collect();
    let _ = writeln!(text, "| category | n | {} |", titles.join(" | "));
    let _ = writeln!(text, "| --- | ---: |{}", " ---: |".repeat(titles.len()));
    let mut names: Vec<&str> = records.iter().map(|record| record.category.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let in_category = |name: &&str| records.iter().filter(|record| record.category == **name).collect();
    let groups: Vec<Vec<&ScoreRecord>> = names.iter().map(in_category).collect();
    for (name, group) in names.iter().zip(&groups) {
        let part = |anchor: &Anchor| {
            anchor
                .parts
                .iter()
                .find(|(part, _)| part == name)
                .map(|(_, value)| *value)
        };
        row(text, name, &[group], part);
    }
    let groups: Vec<&[&ScoreRecord]> = groups.iter().map(Vec::as_slice).collect();
    // Of other categories, the mean is another number.
    let whole = names == CATEGORIES;
    row(text, CATEGORY_MEAN, &groups, |anchor| whole.then_some(anchor.value));
    let all: Vec<&ScoreRecord> = records.iter().collect();
    row(text, "all edits", &[&all], |_| None);
    text.push('\n');
}

/// Writes a row: means over groups of the means of each, then the anchors' values.
fn row(text: &mut String, name: &str, groups: &[&[&ScoreRecord]], published: impl Fn(&Anchor) -> Option<f64>) {
    let count: usize = groups.iter().map(|group| group.len()).sum();
    let own = SCORES.iter().map(|(_, value)| {
        let groups = groups
            .iter()
            .map(|group| group.iter().map(|record| value(record)).collect());
        match mean_of_means(&groups.collect::<Vec<Vec<f64>>>()) {
            Some(Estimate { value, low, high }) => format!("{value:.3} ({low:.3} to {high:.3})"),
            None => String::new(),
        }
    });
    let published = KONTEXT_BENCH_ANCHORS
        .iter()
        .map(|anchor| published(anchor).map_or("-".to_owned(), three));
    let cells: Vec<String> = own.chain(published).collect();
    let _ = writeln!(text, "| {} | {count} | {} |", markdown(name), cells.join(" | "));
}

fn three(value: f64) -> String {
    format!("{value:.3}")
}

/// Returns the mean over groups of each group's mean, with its interval by a bootstrap within each group.
fn mean_of_means(groups: &[Vec<f64>]) -> Option<Estimate> {
    let weighted = |weights: &mut dyn FnMut(usize) -> Vec<f64>| {
        let mean = |values: &Vec<f64>| {
            let weights = weights(values.len());
            values
                .iter()
                .zip(weights)
                .map(|(value, weight)| value * weight)
                .sum::<f64>()
                / values.len() as f64
        };
        groups.iter().map(mean).sum::<f64>() / groups.len() as f64
    };
    let mut resamples = Resamples::new(RESAMPLES, SEED).ok()?;
    let value = weighted(&mut |count| vec![1.0; count]);
    let draws = (0..RESAMPLES).map(|_| weighted(&mut |count| resamples.counts(count)));
    Some(Bootstrap::new(value, draws.collect()).ok()?.estimate())
}

/// Writes what others have measured.
fn anchors(text: &mut String) {
    text.push_str(
        "SC is semantic consistency, PQ perceptual quality, each from 0 to 10, O the mean of sqrt(SC × PQ); with the \
         ends of intervals of 95 % by bootstrap over edits.\n\n\
         Published are others' measurements of FLUX.1 Kontext [dev], by their judges and at their settings. They are \
         anchors: scores of another judge are not comparable with them.\n\n",
    );
    text.push_str("| benchmark | score | value | by category | conditions | source |\n");
    text.push_str("| --- | --- | ---: | --- | --- | --- |\n");
    for anchor in KONTEXT_BENCH_ANCHORS.iter().chain(&OTHER_ANCHORS) {
        let Anchor {
            benchmark,
            measure,
            value,
            parts,
            conditions,
            source,
        } = anchor;
        let in_columns = anchor.benchmark == KONTEXT_BENCH_ANCHORS[0].benchmark;
        let parts: Vec<String> = parts.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let parts = if in_columns {
            "above".to_owned()
        } else {
            parts.join(", ")
        };
        let _ = writeln!(
            text,
            "| {benchmark} | {measure} | {value} | {parts} | {conditions} | {source} |"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::JudgeScore;
    use super::*;

    fn record(judge: &str, category: &str, [consistency, quality]: [f64; 2]) -> ScoreRecord {
        ScoreRecord {
            judge: judge.to_owned(),
            key: String::new(),
            category: category.to_owned(),
            sha256: String::new(),
            score: JudgeScore::new(consistency, quality).unwrap(),
        }
    }

    #[test]
    fn means_are_of_edits_and_of_categories_and_stand_next_to_the_published_ones() {
        let mut records: Vec<ScoreRecord> = CATEGORIES.map(|name| record("a|b", name, [9.0, 4.0])).into();
        records.push(record("a|b", CATEGORIES[0], [9.0, 4.0]));
        records.push(record("a|b", CATEGORIES[4], [0.0, 4.0]));
        let text = score_report(&records);
        for line in [
            "## Scores by a\\|b",
            "| category | n | SC | PQ | O | published G-SC | published G-PQ | published G-O |",
            "| Character Reference | 2 | 9.000 (9.000 to 9.000) | 4.000 (4.000 to 4.000) | 6.000 (6.000 to 6.000) | 7.549 \
             | 6.642 | 6.664 |",
            "| ImgEdit | overall, of 5 | 3.52 |  | as in the source | README of wyhlovecpp/GPT-Image-Edit |",
            "| PICABench | consistency, dB | 24.57 |  | as in the source | PICABench |",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line}\n{text}");
        }
        let row = |name: &str| {
            text.lines()
                .find(|line| line.starts_with(&format!("| {name} |")))
                .unwrap()
        };
        // Text has the scores 9 and 0: the mean is 4.5, of the five categories (4 * 9 + 4.5) / 5, of the edits 54 / 7.
        assert!(row("Text Editing").contains("| 2 | 4.500 ("), "{text}");
        let mean = row("mean of the categories");
        assert!(
            mean.contains("| 7 | 8.100 (") && mean.ends_with("| 7.197 | 6.963 | 6.497 |"),
            "{text}"
        );
        assert!(
            row("all edits").contains("| 7 | 7.714 (") && row("all edits").ends_with("| - | - | - |"),
            "{text}"
        );
    }

    #[test]
    fn judges_have_tables_of_their_own_and_without_scores_there_is_nothing() {
        let scores = [
            record("a", "Colouring", [5.0, 5.0]),
            record("b", "Colouring", [6.0, 6.0]),
        ];
        let text = score_report(&scores);
        assert!(
            text.contains("## Scores by a\n") && text.contains("## Scores by b\n"),
            "{text}"
        );
        // A category of one's own has no anchor, nor has the mean of other categories.
        assert!(
            text.contains("| mean of the categories | 1 | 5.000 (5.000 to 5.000) |"),
            "{text}"
        );
        assert_eq!(text.matches("| - | - | - |").count(), 6);
        assert_eq!(score_report(&[]), "");
    }
}
