//! The causes of an error as one text.

use crate::Error;

impl Error {
    /// Joins the causes of the error with colons: its message without the first line, which names the object
    /// that failed. An error without a cause is its own.
    ///
    /// # Example
    /// ```
    /// let error = kontext_core::Error::config("vae/config.json", "it is empty");
    /// assert_eq!(error.causes(), "the configuration cannot be used: it is empty");
    /// ```
    #[must_use]
    pub fn causes(&self) -> String {
        let first = std::error::Error::source(self);
        let all = std::iter::successors(first, |error| error.source());
        let all: Vec<String> = all.map(ToString::to_string).collect();
        if all.is_empty() {
            self.to_string()
        } else {
            all.join(": ")
        }
    }
}
