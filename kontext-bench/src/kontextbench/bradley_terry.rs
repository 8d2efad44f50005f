//! Bradley and Terry's maximum-likelihood strengths of runs, as Elo ratings.

use std::collections::{BTreeMap, BTreeSet};

/// Mean rating of a connected set of runs.
const MEAN: f64 = 1000.0;
/// Elo's scale: points by which a run leads if it is expected to win ten of eleven votes.
const SCALE: f64 = 400.0;
/// Change of a rating, in points, at which Bradley-Terry's iteration has converged.
const CONVERGED: f64 = 1e-6;
/// Iteration limit: runs with few votes between them converge slowly.
const MOST_ITERATIONS: usize = 100_000;

/// A vote, with runs as indices.
pub(super) struct Game {
    pub(super) left: usize,
    pub(super) right: usize,
    /// The left run's points: 0, 1/2 or 1.
    pub(super) score: f64,
}

/// Computes the Elo ratings of `count` runs.
pub(super) fn bradley_terry(count: usize, games: &[&Game], met: &BTreeSet<(usize, usize)>) -> Vec<f64> {
    // Games between each two runs, and total points of each run.
    let (mut played, mut points) = (vec![vec![0.0; count]; count], vec![0.0; count]);
    let ties = met
        .iter()
        .map(|&(left, right)| Game {
            left,
            right,
            score: 0.5,
        })
        .collect::<Vec<_>>();
    for game in games.iter().copied().chain(&ties) {
        played[game.left][game.right] += 1.0;
        played[game.right][game.left] += 1.0;
        points[game.left] += game.score;
        points[game.right] += 1.0 - game.score;
    }
    let sets = sets(count, met);
    let mut elo = vec![MEAN; count];
    for _ in 0..MOST_ITERATIONS {
        let strength: Vec<f64> = elo.iter().map(|elo| 10_f64.powf((elo - MEAN) / SCALE)).collect();
        let new = |run: usize| {
            let expected: f64 = (0..count)
                .filter(|other| played[run][*other] > 0.0)
                .map(|other| played[run][other] / (strength[run] + strength[other]))
                .sum();
            if expected > 0.0 {
                MEAN + SCALE * (points[run] / expected).log10()
            } else {
                MEAN
            }
        };
        let mut next: Vec<f64> = (0..count).map(new).collect();
        for set in &sets {
            let mean = set.iter().map(|run| next[*run]).sum::<f64>() / set.len() as f64;
            set.iter().for_each(|run| next[*run] += MEAN - mean);
        }
        let change = elo.iter().zip(&next).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        elo = next;
        if change < CONVERGED {
            break;
        }
    }
    elo
}

/// Groups runs into sets connected by votes.
fn sets(count: usize, met: &BTreeSet<(usize, usize)>) -> Vec<Vec<usize>> {
    let mut set_of: Vec<usize> = (0..count).collect();
    for &(a, b) in met {
        let (from, to) = (set_of[a], set_of[b]);
        set_of.iter_mut().filter(|set| **set == from).for_each(|set| *set = to);
    }
    let mut sets = BTreeMap::<usize, Vec<usize>>::new();
    for (run, set) in set_of.into_iter().enumerate() {
        sets.entry(set).or_default().push(run);
    }
    sets.into_values().collect()
}
