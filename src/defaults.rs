//! A model's own defaults: `kontext.json` in its folder.

use std::path::Path;

use kontext_core::{Error, Result, range, read_json, write_json};
use kontext_sampler::geometry::PREFERRED_SIZES;
use kontext_sampler::{Sampler, Shift, Size};
use kontext_text::TextEncoder;
use serde::{Deserialize, Serialize};

/// Name of the file.
const FILE: &str = "kontext.json";
/// Beyond this, a guidance value only overflows.
pub(crate) const LARGEST_GUIDANCE: f64 = 1000.0;
/// Range of the number of preferred sizes.
const SIZES: std::ops::RangeInclusive<usize> = 1..=1000;
/// Range of the sampling steps, as of a request.
pub(crate) const STEPS: std::ops::RangeInclusive<usize> = 1..=1000;

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
    /// Width and height of the training images, from 1 to 1000 sizes. Default: the 17 sizes near one megapixel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Vec<[u32; 2]>>,
    /// Sampling steps, from 1 to 1000. Default: 28, or 4 for a model without a guidance embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// The rule of a step. Default: that of the scheduler's configuration, else [`Sampler::Euler`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// A fixed shift of the noise levels, from 0.01 to 100. Default: the shift of the scheduler's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Guidance value, from -1000 to 1000, for models that embed one; with others, each plan warns that it has
    /// no effect. Default: 2.5.
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
        defaults.validate().map_err(Error::in_config(&path))?;
        Ok(defaults)
    }

    /// Checks the values. A model read from files has valid ones, and so must [`Parts`](crate::Parts).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field and its range.
    pub fn validate(&self) -> Result<()> {
        if let Some(sizes) = &self.sizes {
            range::within("number of sizes", sizes.len(), SIZES)?;
        }
        if let Some(size) = self.sizes().into_iter().find(|size| size.grid().is_err()) {
            let expected = "[width, height], both multiples of 16 from 16 to 8192";
            return Err(Error::invalid("sizes", expected, size));
        }
        if let Some(steps) = self.steps {
            range::within("steps", steps, STEPS)?;
        }
        if let Some(shift) = self.shift {
            range::within("shift", shift, Shift::RANGE)?;
        }
        if let Some(guidance) = self.guidance {
            range::within("guidance", guidance, -LARGEST_GUIDANCE..=LARGEST_GUIDANCE)?;
        }
        self.max_sequence_length
            .map_or(Ok(()), |tokens| check_tokens(tokens).map(drop))
    }

    /// Writes the defaults into a model's folder.
    ///
    /// # Errors
    /// Those of [`ModelDefaults::validate`], since they could not be read again; [`Error::Io`] if the folder
    /// cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.validate()?;
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
        assert!(message(r#"{"stepz": 3}"#).contains("stepz"));
        for (field, value, range) in [
            (
                "sizes",
                "[[100, 128]]",
                "[width, height], both multiples of 16 from 16 to 8192, got 100x128",
            ),
            ("sizes", "[]", "a number from 1 to 1000, got 0"),
            ("steps", "0", "a number from 1 to 1000, got 0"),
            ("steps", "1001", "a number from 1 to 1000, got 1001"),
            (
                "sampler",
                "\"ddim\"",
                "expected euler, consistency, heun or dpmpp_2m, got ddim",
            ),
            ("shift", "0", "a number from 0.01 to 100, got 0"),
            ("guidance", "1e300", "a number from -1000 to 1000, got 1000000000000000"),
            ("guidance", "-1001.0", "a number from -1000 to 1000, got -1001"),
        ] {
            let message = message(&format!("{{\"{field}\": {value}}}"));
            assert!(message.contains(field) && message.contains(range), "{message}");
        }
    }

    #[test]
    fn defaults_that_could_not_be_read_again_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        for guidance in [1e300, f64::NAN, f64::INFINITY] {
            let defaults = ModelDefaults {
                guidance: Some(guidance),
                ..ModelDefaults::default()
            };
            let error = defaults.save(folder.path()).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid guidance: expected a number from -1000 to 1000, got "),
                "{error}"
            );
        }
        assert!(!folder.path().join(FILE).exists());
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
