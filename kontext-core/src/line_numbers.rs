//! Line numbers of a text by offset.

/// Numbers from 1 of the lines in a text, for offsets that do not decrease: those of a CSV reader, whose own count
/// lags by one after a carriage return and a line feed.
///
/// # Example
/// ```
/// use kontext_core::LineNumbers;
/// let mut lines = LineNumbers::new(b"a\r\n\r\nb\n");
/// assert_eq!([lines.at(0), lines.at(1)], [1, 3]);
/// ```
#[derive(Debug)]
pub struct LineNumbers<'a> {
    bytes: &'a [u8],
    at: usize,
    line: usize,
}

impl<'a> LineNumbers<'a> {
    /// Starts at the first line of a text.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, line: 1 }
    }

    /// Returns the number of the line of the first record at or after an offset.
    pub fn at(&mut self, offset: usize) -> usize {
        let after = self.bytes.get(offset..).unwrap_or_default();
        let breaks = after.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let passed = self.bytes.get(self.at..offset + breaks).unwrap_or_default();
        self.line += passed.iter().filter(|byte| **byte == b'\n').count();
        self.at = offset + breaks;
        self.line
    }
}
