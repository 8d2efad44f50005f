//! Progress of a judge.

/// Progress of a judge through the pairs of a bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct JudgeProgress<'a> {
    /// Pairs that are judged, those of earlier calls among them.
    pub done: usize,
    /// Pairs to judge in total.
    pub total: usize,
    /// Key of the pair just judged; `None` at the start.
    pub key: Option<&'a str>,
}
