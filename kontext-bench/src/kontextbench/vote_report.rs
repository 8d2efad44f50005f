//! Votes as tables.

use super::{Rating, Vote, ratings, win_rates};
use crate::cell::markdown;

/// Formats votes as two Markdown tables.
#[must_use]
pub fn vote_report(votes: &[Vote], seed: u64) -> String {
    let mut text = String::from(
        "| run | against | category | won | lost | tied | win rate (95 %) |\n\
         | --- | --- | --- | ---: | ---: | ---: | ---: |\n",
    );
    for rate in win_rates(votes) {
        let [won, lost, tied] = rate.votes;
        let category = rate.category.as_deref().map_or("**all**".to_owned(), markdown);
        let (run, against, category) = (markdown(&rate.run), markdown(&rate.against), category);
        text.push_str(&format!(
            "| {run} | {against} | {category} | {won} | {lost} | {tied} | {rate} |\n"
        ));
    }
    text.push_str("\n| run | votes | Elo (95 %) |\n| --- | ---: | ---: |\n");
    for Rating { run, votes, elo } in ratings(votes, seed) {
        let run = markdown(&run);
        text.push_str(&format!(
            "| {run} | {votes} | {:.0} ({:.0} to {:.0}) |\n",
            elo.value, elo.low, elo.high
        ));
    }
    text
}
