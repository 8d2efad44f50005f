//! A model's own defaults: `kontext.json` in its folder.

use std::path::Path;

use kontext_core::{Error, Result, range, read_json, write_json};
use kontext_sampler::Size;
use kontext_sampler::geometry::PREFERRED_SIZES;
use kontext_text::TextEncoder;
use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "kontext.json";

/// Defaults of a model. Fields not set have the values of the published models.
///
/// PipelineBuilder options and request fields take precedence.
///
/// # Example
/// ```
/// use kontext::{ModelDefaults, Size};
/// let folder = tempfile::tempdir().unwrap();
/// assert_eq!(ModelDefaults::of(folder.path())?.sizes().len(), 17);
/// let small = ModelDefaults { sizes: Some(vec![[128, 128]]), steps: Some(12), ..ModelDefaults::default() };
/// small.save(folder.path())?;
/// assert_eq!(ModelDefaults::of(folder.path())?.sizes(), [Size::new(128, 128)]);
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelDefaults {
    /// Width and height of the training images. Default: the 17 sizes near one megapixel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Vec<[u32; 2]>>,
    /// Sampling steps. Default: 28, or 4 for a model without a guidance embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// Guidance value, for models that embed one. Default: 2.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guidance: Option<f64>,
    /// Number of T5 tokens, at most [`TextEncoder::MOST_TOKENS`](kontext_text::TextEncoder::MOST_TOKENS). Default: 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequence_length: Option<usize>,
}

impl ModelDefaults {
    /// Reads the defaults of the model in a folder.
    ///
    /// # Errors
    /// [`Error::Io`] if there is a `kontext.json` but it cannot be read, a checkpoint error naming the field
    /// if a value is invalid.
    pub fn of(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join(FILE);
        if !path.is_file() {
            return Ok(Self::default());
        }
        let defaults: Self = read_json(&path)?;
        let wrong = |field: &str, expected: &str| {
            Err(Error::config(
                &path,
                format!("expected `{field}` to be {expected}; correct or delete it"),
            ))
        };
        let sizes = defaults.sizes();
        if sizes.is_empty() || sizes.iter().any(|size| size.grid().is_err()) {
            return wrong(
                "sizes",
                "a list of [width, height], both multiples of 16 of at most 8192",
            );
        }
        if let Some(tokens) = defaults.max_sequence_length {
            check_tokens(tokens).map_err(Error::in_config(&path))?;
        }
        match (defaults.steps, defaults.guidance) {
            (Some(0 | 1001..), _) => wrong("steps", "from 1 to 1000"),
            (_, Some(guidance)) if !guidance.is_finite() => wrong("guidance", "a number"),
            _ => Ok(defaults),
        }
    }

    /// Writes the defaults into a model's folder.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        write_json(folder.as_ref().join(FILE), &serde_json::json!(self))
    }

    /// Returns the preferred sizes.
    #[must_use]
    pub fn sizes(&self) -> Vec<Size> {
        match &self.sizes {
            Some(sizes) => sizes.iter().map(|[width, height]| Size::new(*width, *height)).collect(),
            None => PREFERRED_SIZES.to_vec(),
        }
    }
}

/// Checks a number of T5 tokens.
pub(crate) fn check_tokens(tokens: usize) -> Result<usize> {
    range::within("max_sequence_length", tokens, 1..=TextEncoder::MOST_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |text: &str| {
            std::fs::write(folder.path().join(FILE), text).unwrap();
            let error = ModelDefaults::of(folder.path()).unwrap_err();
            std::error::Error::source(&error).unwrap().to_string()
        };
        assert!(message(r#"{"sizes": [[100, 128]]}"#).contains("`sizes`"));
        assert!(message(r#"{"steps": 0}"#).contains("`steps`"));
        assert!(message(r#"{"stepz": 3}"#).contains("stepz"));
    }

    #[test]
    fn a_sequence_length_that_no_memory_holds_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let read = |tokens: u64| {
            let text = format!(r#"{{"max_sequence_length": {tokens}}}"#);
            std::fs::write(folder.path().join(FILE), text).unwrap();
            ModelDefaults::of(folder.path())
        };
        for tokens in [0, 65_537, 1 << 31, 1 << 56, 1 << 60, u64::MAX] {
            let error = read(tokens).unwrap_err();
            let reason = std::error::Error::source(&error).unwrap().to_string();
            assert!(
                reason.contains("max_sequence_length: expected a number from 1 to 65536, got "),
                "{reason}"
            );
        }
        for tokens in [1, 65_536] {
            assert_eq!(read(tokens).unwrap().max_sequence_length, Some(tokens as usize));
        }
    }
}
