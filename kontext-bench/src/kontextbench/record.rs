//! Numbers of one pair's result.

use serde::{Deserialize, Serialize};

use super::Measures;

/// Contents of `records/KEY.json`, without times, so that a repeated run gives the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The pair's key.
    pub key: String,
    /// The pair's category.
    pub category: String,
    /// The pair's instruction.
    pub instruction: String,
    /// Seed of the result's noise.
    pub seed: u64,
    /// Width of the result in pixels.
    pub width: u32,
    /// Height of the result in pixels.
    pub height: u32,
    /// SHA-256 of the result file.
    pub sha256: String,
    /// Metrics of the result.
    pub measures: Measures,
}

/// Contents of `timings/KEY.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The pair's key.
    pub key: String,
    /// Wall-clock seconds from request to image.
    pub seconds: f64,
    /// Sampling steps in that time.
    pub steps: usize,
}
