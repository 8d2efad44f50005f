//! A shard of a run, for several processes or machines.

use std::fmt;
use std::str::FromStr;

/// The pairs whose index is `index` modulo `count`; by default all.
///
/// ```
/// use kontext_bench::kontextbench::Shard;
/// let shard: Shard = "1/3".parse()?;
/// assert_eq!((0..7).filter(|index| shard.has(*index)).collect::<Vec<_>>(), [1, 4]);
/// assert_eq!("3/3".parse::<Shard>().unwrap_err(), "expected i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3");
/// # Ok::<(), String>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// Returns `true` if the pair with this index in the bench belongs to the shard.
    #[must_use]
    pub fn has(&self, index: usize) -> bool {
        index % self.count == self.index
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, count: 1 }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once('/')
            .and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
        match numbers {
            Some((index, count)) if index < count => Ok(Self { index, count }),
            _ => Err("expected i/n with i from 0 to n - 1, such as 0/3, 1/3 and 2/3".to_owned()),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}
