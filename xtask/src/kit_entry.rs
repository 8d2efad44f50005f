//! A file of a GPU kit with its size.

use std::fmt;
use std::path::PathBuf;

/// The most that a kit may take: it is sent to the machine with the GPU each time.
pub(crate) const LIMIT: Size = Size(40 << 20);

/// An amount of bytes, shown in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // In hundredths, rounded up: what is above the limit is never shown as the limit.
        let hundredths = (u128::from(self.0) * 100).div_ceil(1 << 20);
        write!(f, "{}.{:02} MiB", hundredths / 100, hundredths % 100)
    }
}

/// A file of the kit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Relative to the folder of the kit.
    pub(crate) path: PathBuf,
    pub(crate) size: Size,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10}  {}", self.size.to_string(), self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_hundredths_of_mebibytes() {
        assert_eq!(Size(0).to_string(), "0.00 MiB");
        assert_eq!(Size(1).to_string(), "0.01 MiB");
        assert_eq!(Size(3 << 19).to_string(), "1.50 MiB");
        assert_eq!(LIMIT.to_string(), "40.00 MiB");
        assert_eq!(Size(LIMIT.0 + 1).to_string(), "40.01 MiB");
    }
}
