//! Settings of a run that a LoRA's file asks for in its metadata.

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::{CheckpointError, Error, Result, range, shortened};
use kontext_sampler::{Sampler, Shift};

/// Metadata key of the scale, under which SwarmUI and its tools record it.
///
/// Source: mcmonkeyprojects/SwarmUI `src/Text2Image/T2IModelHandler.cs`, `LoraDefaultWeight`.
const SCALE: [&str; 2] = ["modelspec.lora_default_weight", "lora_default_weight"];
const STEPS: &str = "kontext.steps";
const GUIDANCE: &str = "kontext.guidance";
const SAMPLER: &str = "kontext.sampler";
const SHIFT: &str = "kontext.shift";
/// Characters of a wrong value that a message shows.
const LONGEST: usize = 40;

/// Settings with which a LoRA is to be used, as its file's metadata says: the defaults of a run with it.
///
/// | setting | metadata key | value |
/// |---|---|---|
/// | steps | `kontext.steps` | 1 to 1000 |
/// | guidance value | `kontext.guidance` | -1000 to 1000 |
/// | sampler | `kontext.sampler` | a name of [`Sampler`] |
/// | fixed shift | `kontext.shift` | 0.01 to 100 |
/// | scale of the LoRA | `modelspec.lora_default_weight`, as of SwarmUI | -100 to 100, not 0; other text is none |
///
/// Kohya's and ai-toolkit's keys (`ss_steps`, `training_info`) are of the training, and the Stability AI Model
/// Metadata Standard has none for the other four. An empty entry is none.
///
/// # Example
/// ```
/// use kontext_lora::LoraDefaults;
/// use kontext_sampler::Sampler;
/// let defaults = LoraDefaults { steps: Some(4), sampler: Some(Sampler::Consistency), ..LoraDefaults::default() };
/// assert_eq!(defaults.to_facts()["kontext.steps"], "4");
/// assert_eq!(LoraDefaults::from_facts(&defaults.to_facts())?, defaults);
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LoraDefaults {
    /// Sampling steps.
    pub steps: Option<usize>,
    /// Guidance value.
    pub guidance: Option<f64>,
    /// The rule of a step.
    pub sampler: Option<Sampler>,
    /// Fixed shift of the noise levels.
    pub shift: Option<f64>,
    /// Scale of the LoRA.
    pub scale: Option<f64>,
}

impl LoraDefaults {
    /// Reads the settings from the metadata of a file, as `Lora::facts` has it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the `kontext.*` key of a value that is no number, out of its range, or
    /// the name of no sampler. The scale's key is other tools' and free text: a value that is no scale is
    /// none.
    pub fn from_facts(facts: &BTreeMap<String, String>) -> Result<Self> {
        let fact = |key: &str| facts.get(key).map(|text| text.trim()).filter(|text| !text.is_empty());
        let number = |key: &'static str, most: std::ops::RangeInclusive<f64>| -> Result<Option<f64>> {
            let Some(text) = fact(key) else { return Ok(None) };
            let value = text.parse::<f64>().map_err(|_| not_a_number(key, text))?;
            range::within(key, value, most).map(Some)
        };
        let steps = fact(STEPS).map(|text| text.parse().map_err(|_| not_a_number(STEPS, text)));
        let steps = steps.transpose()?.map(|steps| range::within(STEPS, steps, 1..=1000));
        let sampler = fact(SAMPLER).map(|text| shortened(text, LONGEST).parse());
        let scale = |key: &str| {
            let scale = fact(key)?.parse::<f64>().ok()?;
            ((-100.0..=100.0).contains(&scale) && scale != 0.0).then_some(scale)
        };
        Ok(Self {
            steps: steps.transpose()?,
            guidance: number(GUIDANCE, -1000.0..=1000.0)?,
            sampler: sampler.transpose()?,
            shift: number(SHIFT, Shift::RANGE)?,
            scale: SCALE.into_iter().find_map(scale),
        })
    }

    /// Reads the settings from the metadata of this file.
    pub(crate) fn of_file(path: &Path, facts: &BTreeMap<String, String>) -> Result<Self> {
        Self::from_facts(facts).map_err(|error| {
            let reason = format!("{error}, in its header; write the file again");
            Error::checkpoint(path)(CheckpointError::Lora { reason })
        })
    }

    /// Returns the metadata that says these settings, for [`save_lora`](crate::save_lora).
    #[must_use]
    pub fn to_facts(&self) -> BTreeMap<String, String> {
        let facts = [
            (STEPS, self.steps.map(|steps| steps.to_string())),
            (GUIDANCE, self.guidance.map(|guidance| guidance.to_string())),
            (SAMPLER, self.sampler.map(|sampler| sampler.to_string())),
            (SHIFT, self.shift.map(|shift| shift.to_string())),
            (SCALE[0], self.scale.map(|scale| scale.to_string())),
        ];
        let given = facts
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?)));
        given.collect()
    }
}

fn not_a_number(key: &'static str, text: &str) -> Error {
    Error::invalid(key, "a number", shortened(text, LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(facts: &[(&str, &str)]) -> Result<LoraDefaults, String> {
        let facts = facts
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        LoraDefaults::from_facts(&facts.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_is_read_again_and_other_keys_do_not_count() {
        let all = LoraDefaults {
            steps: Some(8),
            guidance: Some(3.5),
            sampler: Some(Sampler::Consistency),
            shift: Some(3.2),
            scale: Some(0.125),
        };
        assert_eq!(LoraDefaults::from_facts(&all.to_facts()).unwrap(), all);
        assert_eq!(LoraDefaults::default().to_facts(), BTreeMap::new());
        let training = [("ss_steps", "2000"), ("steps", "12"), ("kontext.steps", " ")];
        assert_eq!(read(&training), Ok(LoraDefaults::default()));
        assert_eq!(read(&[("lora_default_weight", "0.8")]).unwrap().scale, Some(0.8));
    }

    #[test]
    fn a_wrong_value_is_named_by_its_key() {
        for (key, value, words) in [
            (
                "kontext.steps",
                "four",
                "invalid kontext.steps: expected a number, got four",
            ),
            (
                "kontext.steps",
                "0",
                "invalid kontext.steps: expected a number from 1 to 1000, got 0",
            ),
            ("kontext.guidance", "NaN", "a number from -1000 to 1000, got NaN"),
            (
                "kontext.sampler",
                "ddim",
                "invalid sampler: expected euler, consistency",
            ),
            ("kontext.shift", "1e9", "a number from 0.01 to 100, got 1000000000"),
        ] {
            let error = read(&[(key, value)]).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    /// Other tools write free text.
    #[test]
    fn a_scale_that_is_none_does_not_count() {
        for value in ["0.6-0.8", "auto", "0", "-0.0", "101", "NaN", "inf"] {
            assert_eq!(read(&[(SCALE[0], value)]), Ok(LoraDefaults::default()), "{value}");
            let both = [(SCALE[0], value), (SCALE[1], "0.8")];
            assert_eq!(read(&both).unwrap().scale, Some(0.8), "{value}");
        }
    }
}
