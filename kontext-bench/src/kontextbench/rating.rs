//! Elo ratings from votes, with intervals.

use std::collections::{BTreeMap, BTreeSet};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::Vote;
use super::bradley_terry::{Game, bradley_terry};
use crate::statistics::{Estimate, index};

/// Bootstrap samples.
const SAMPLES: usize = 1000;

/// A run's Elo rating.
#[derive(Debug, Clone, PartialEq)]
pub struct Rating {
    /// The run.
    pub run: String,
    /// Number of votes in which the run took part.
    pub votes: usize,
    /// Elo rating, with a bootstrap interval over pairs.
    pub elo: Estimate,
}

/// Computes the runs' Elo ratings: Bradley and Terry's maximum-likelihood strengths, with mean 1000.
///
/// A tie is half a win for each. One tie is added for every two runs that were compared; otherwise a run that
/// won all its votes would have no finite rating. Runs not connected by any chain of votes are rated
/// separately, each set around 1000. Intervals are the middle 95 % of 1000 bootstrap samples, which resample
/// pairs (with all their votes), because votes on one pair are correlated.
///
/// Source: R. A. Bradley and M. E. Terry, "Rank Analysis of Incomplete Block Designs" (1952), by the
/// iteration of D. R. Hunter, "MM algorithms for generalized Bradley-Terry models" (2004).
#[must_use]
pub fn ratings(votes: &[Vote], seed: u64) -> Vec<Rating> {
    let names: Vec<&str> = votes
        .iter()
        .flat_map(|vote| [vote.left.as_str(), vote.right.as_str()])
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let place: BTreeMap<&str, usize> = names.iter().enumerate().map(|(index, name)| (*name, index)).collect();
    let mut by_pair = BTreeMap::<&str, Vec<Game>>::new();
    for vote in votes {
        let game = Game {
            left: place[vote.left.as_str()],
            right: place[vote.right.as_str()],
            score: vote.left_score(),
        };
        by_pair.entry(&vote.key).or_default().push(game);
    }
    let pairs: Vec<Vec<Game>> = by_pair.into_values().collect();
    let all: Vec<&Game> = pairs.iter().flatten().collect();
    // The added ties are taken from all votes, so that no sample disconnects a run.
    let met: BTreeSet<(usize, usize)> = all
        .iter()
        .map(|game| (game.left.min(game.right), game.left.max(game.right)))
        .collect();
    let values = bradley_terry(names.len(), &all, &met);
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..SAMPLES {
        let drawn = (0..pairs.len()).map(|_| index(random.next_u64(), pairs.len()));
        let games: Vec<&Game> = drawn.flat_map(|index| &pairs[index]).collect();
        for (all, value) in samples.iter_mut().zip(bradley_terry(names.len(), &games, &met)) {
            all.push(value);
        }
    }
    let rating = |(index, mut samples): (usize, Vec<f64>)| {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
        let votes = all
            .iter()
            .filter(|game| game.left == index || game.right == index)
            .count();
        let elo = Estimate {
            value: values[index],
            low: at(0.025),
            high: at(0.975),
        };
        Rating {
            run: names[index].to_owned(),
            votes,
            elo,
        }
    };
    let mut ratings: Vec<Rating> = samples.into_iter().enumerate().map(rating).collect();
    ratings.sort_by(|a, b| b.elo.value.total_cmp(&a.elo.value));
    ratings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kontextbench::{Choice, vote_report, wilson, win_rates};

    fn votes(left: &str, right: &str, counts: [usize; 3]) -> Vec<Vote> {
        let choices = [Choice::Left, Choice::Right, Choice::Tie];
        let choices = choices
            .into_iter()
            .zip(counts)
            .flat_map(|(choice, count)| std::iter::repeat_n(choice, count));
        let vote = |(index, choice): (usize, Choice)| Vote {
            key: format!("{index:04}_00"),
            category: if index % 2 == 0 {
                "Text Editing"
            } else {
                "Style Reference"
            }
            .to_owned(),
            left: left.to_owned(),
            right: right.to_owned(),
            choice,
            time: String::new(),
            judge: String::new(),
        };
        choices.enumerate().map(vote).collect()
    }

    #[test]
    fn win_rates_do_not_depend_on_the_side() {
        let mut all = votes("a", "b", [6, 2, 2]);
        all.extend(votes("b", "a", [1, 3, 0]));
        let rates = win_rates(&all);
        assert_eq!(rates.len(), 3);
        assert_eq!((rates[0].category.clone(), rates[0].votes), (None, [9, 3, 2]));
        assert_eq!(rates[0].rate, wilson(10.0, 14.0));
        assert_eq!(
            rates
                .iter()
                .skip(1)
                .map(|rate| rate.votes.iter().sum::<usize>())
                .sum::<usize>(),
            14
        );
    }

    #[test]
    fn ten_wins_in_eleven_are_four_hundred_points() {
        // With the added tie, 10.5 of 12 points are 400 log10(10.5 / 1.5).
        let ratings = ratings(&votes("a", "b", [10, 1, 0]), 0);
        let expected = 400.0 * 7_f64.log10() / 2.0;
        assert_eq!(ratings.iter().map(|r| r.run.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert!((ratings[0].elo.value - 1000.0 - expected).abs() < 1e-3, "{ratings:?}");
        assert!((ratings[1].elo.value - 1000.0 + expected).abs() < 1e-3, "{ratings:?}");
        assert!(
            ratings[0].elo.low < ratings[0].elo.value && ratings[0].elo.value < ratings[0].elo.high,
            "{ratings:?}"
        );
        assert_eq!(ratings[0].votes, 11);
    }

    #[test]
    fn a_run_that_won_everything_has_a_rating() {
        let ratings = ratings(&votes("b", "a", [5, 0, 0]), 0);
        assert_eq!(ratings[0].run, "b");
        assert!(
            (ratings[0].elo.value - 1000.0 - 200.0 * 11_f64.log10()).abs() < 1e-3,
            "{ratings:?}"
        );
    }

    #[test]
    fn strength_passes_along_a_chain_of_votes() {
        let mut all = votes("a", "b", [30, 10, 0]);
        all.extend(votes("b", "c", [30, 10, 0]));
        let ratings = ratings(&all, 1);
        let elo: Vec<f64> = ratings.iter().map(|r| r.elo.value).collect();
        assert_eq!(
            ratings.iter().map(|r| r.run.as_str()).collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        // Each step is 400 log10(30.5 / 10.5); without a vote between a and c it is twice that from end to
        // end.
        let step = 400.0 * (30.5_f64 / 10.5).log10();
        assert!(
            (elo[0] - elo[1] - step).abs() < 1e-3 && (elo[1] - elo[2] - step).abs() < 1e-3,
            "{elo:?}"
        );
    }

    #[test]
    fn runs_that_never_met_are_rated_apart() {
        let mut all = votes("a", "b", [3, 1, 0]);
        all.extend(votes("c", "d", [1, 1, 1]));
        let by_name: BTreeMap<String, f64> = ratings(&all, 0).into_iter().map(|r| (r.run, r.elo.value)).collect();
        assert!((by_name["a"] + by_name["b"] - 2000.0).abs() < 1e-6);
        assert!((by_name["c"] - 1000.0).abs() < 1e-6 && (by_name["d"] - 1000.0).abs() < 1e-6);
        assert!(vote_report(&all, 0).contains("| a | b | **all** | 3 | 1 | 0 | 75 % (30 to 95) |"));
    }
}
