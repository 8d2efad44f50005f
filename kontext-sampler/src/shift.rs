//! The shift of the sigmas, and diffusers' configuration of it.

use std::path::Path;

use kontext_core::{Error, Result, check_class, range, read_json};
use serde::Deserialize;

use crate::Conformance;

/// Shift of the sigmas towards noise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Shift {
    /// By `e^mu`, where mu grows linearly with the number of target tokens.
    Dynamic {
        /// mu at `base_tokens`.
        base_shift: f64,
        /// mu at `max_tokens`.
        max_shift: f64,
        /// Tokens of the smallest training image.
        base_tokens: f64,
        /// Tokens of the largest training image.
        max_tokens: f64,
    },
    /// By a constant factor; 1 leaves the sigmas as they are.
    Fixed(f64),
}

/// Fields of diffusers' `scheduler_config.json` that determine the sigmas.
#[derive(Deserialize)]
#[serde(default)]
struct DiffusersConfig {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    shift: f64,
    use_dynamic_shifting: bool,
    base_shift: f64,
    max_shift: f64,
    base_image_seq_len: f64,
    max_image_seq_len: f64,
    time_shift_type: String,
    shift_terminal: Option<f64>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    invert_sigmas: bool,
    stochastic_sampling: bool,
}

impl Default for DiffusersConfig {
    fn default() -> Self {
        Self {
            class_name: None,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256.0,
            max_image_seq_len: 4096.0,
            time_shift_type: "exponential".to_owned(),
            shift_terminal: None,
            use_karras_sigmas: None,
            use_exponential_sigmas: None,
            use_beta_sigmas: None,
            invert_sigmas: false,
            stochastic_sampling: false,
        }
    }
}

impl DiffusersConfig {
    /// Checks the numbers: published shifts are 0.5 to 3, and lengths 256 to 4096.
    fn in_range(&self) -> Result<()> {
        range::within("shift", self.shift, 0.01..=100.0)?;
        range::within("base_shift", self.base_shift, -10.0..=10.0)?;
        range::within("max_shift", self.max_shift, -10.0..=10.0)?;
        let base = range::within("base_image_seq_len", self.base_image_seq_len, 1.0..=1e6)?;
        let most = range::within("max_image_seq_len", self.max_image_seq_len, 1.0..=1e6)?;
        if base >= most {
            let expected = format!("a number above base_image_seq_len, which is {base}");
            return Err(Error::invalid("max_image_seq_len", expected, most));
        }
        Ok(())
    }
}

impl Shift {
    /// Returns the shift of FLUX.1-dev and Kontext: mu from 0.5 at 256 tokens to 1.15 at 4096.
    #[must_use]
    pub const fn dev() -> Self {
        Self::Dynamic {
            base_shift: 0.5,
            max_shift: 1.15,
            base_tokens: 256.0,
            max_tokens: 4096.0,
        }
    }

    /// Returns the shift of FLUX.1-schnell: none.
    #[must_use]
    pub const fn schnell() -> Self {
        Self::Fixed(1.0)
    }

    /// Reads diffusers' `scheduler_config.json`.
    ///
    /// # Errors
    /// A checkpoint error if the file is not such a configuration, or asks for a schedule that FLUX.1 does
    /// not use.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json: DiffusersConfig = read_json(path)?;
        let class = json.class_name.as_deref();
        check_class(path, "_class_name", class, &["FlowMatchEulerDiscreteScheduler"])?;
        let flags = [
            json.use_karras_sigmas,
            json.use_exponential_sigmas,
            json.use_beta_sigmas,
        ];
        if flags.contains(&Some(true))
            || json.shift_terminal.is_some()
            || json.invert_sigmas
            || json.stochastic_sampling
        {
            return Err(Error::config(
                path,
                "it asks for karras, exponential, beta, terminal, inverted or stochastic sigmas, which FLUX.1 does not use; fetch the configuration of FLUX.1's scheduler",
            ));
        }
        if json.use_dynamic_shifting && json.time_shift_type != "exponential" {
            return Err(Error::config(
                path,
                format!(
                    "`time_shift_type` is {}, expected exponential; fetch the configuration of FLUX.1's scheduler",
                    json.time_shift_type
                ),
            ));
        }
        json.in_range().map_err(Error::in_config(path))?;
        Ok(if json.use_dynamic_shifting {
            Self::Dynamic {
                base_shift: json.base_shift,
                max_shift: json.max_shift,
                base_tokens: json.base_image_seq_len,
                max_tokens: json.max_image_seq_len,
            }
        } else {
            Self::Fixed(json.shift)
        })
    }

    /// Shifts one sigma in (0, 1] for a target of `target_tokens` tokens, so that training samples the noise
    /// levels of a run.
    #[must_use]
    pub fn shifted(self, sigma: f32, target_tokens: i64) -> f32 {
        let mut sigma = [sigma];
        self.apply(&mut sigma, target_tokens, Conformance::Native);
        sigma[0]
    }

    /// Shifts sigmas for a target of `target_tokens` tokens, in f32 as the references do.
    pub(crate) fn apply(self, sigmas: &mut [f32], target_tokens: i64, conformance: Conformance) {
        match self {
            Self::Dynamic {
                base_shift,
                max_shift,
                base_tokens,
                max_tokens,
            } => {
                let slope = (max_shift - base_shift) / (max_tokens - base_tokens);
                let mu = target_tokens as f64 * slope + (base_shift - slope * base_tokens);
                let factor = mu.exp() as f32;
                for sigma in sigmas {
                    let sum = factor + (1.0 / *sigma - 1.0);
                    *sigma = match conformance {
                        Conformance::Native | Conformance::Diffusers => factor / sum,
                        // PyTorch divides a number by a tensor as the tensor's reciprocal times the number.
                        Conformance::Bfl => 1.0 / sum * factor,
                    };
                }
            }
            Self::Fixed(shift) => {
                let (shift, excess) = (shift as f32, (shift - 1.0) as f32);
                for sigma in sigmas {
                    *sigma = shift * *sigma / (1.0 + excess * *sigma);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Shift, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scheduler_config.json");
        std::fs::write(&path, json).unwrap();
        Shift::from_json(&path).map_err(|error| std::error::Error::source(&error).unwrap().to_string())
    }

    #[test]
    fn shifts_out_of_range_and_other_schedulers_are_refused_by_the_fields_name() {
        assert_eq!(read(r#"{"shift": 3.0}"#), Ok(Shift::Fixed(3.0)));
        for (json, words) in [
            (
                r#"{"shift": -5}"#,
                "invalid shift: expected a number from 0.01 to 100, got -5",
            ),
            (
                r#"{"shift": 0}"#,
                "invalid shift: expected a number from 0.01 to 100, got 0",
            ),
            (
                r#"{"base_shift": 500}"#,
                "invalid base_shift: expected a number from -10 to 10, got 500",
            ),
            (
                r#"{"max_image_seq_len": 256}"#,
                "a number above base_image_seq_len, which is 256, got 256",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler"}"#,
                "`_class_name` is DPMSolverMultistepScheduler, expected FlowMatchEulerDiscreteScheduler",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
