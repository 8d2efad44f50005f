//! One pair's result in numbers.

use serde::{Deserialize, Serialize};

use super::Measures;

/// What `records/KEY.json` holds. It has no times, so that a run made again has the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The pair's key.
    pub key: String,
    /// The pair's category.
    pub category: String,
    /// The pair's instruction.
    pub instruction: String,
    /// The seed of the result's noise.
    pub seed: u64,
    /// The result's width in pixels.
    pub width: u32,
    /// The result's height in pixels.
    pub height: u32,
    /// SHA-256 of the result's file.
    pub sha256: String,
    /// How it was measured.
    pub measures: Measures,
}

/// What `timings/KEY.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The pair's key.
    pub key: String,
    /// Seconds from request to picture, on the wall.
    pub seconds: f64,
    /// Sampling steps within.
    pub steps: usize,
}
