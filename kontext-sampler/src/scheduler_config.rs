//! diffusers' configuration of a scheduler: the shift of the sigmas, and the sampler.

use std::path::Path;

use kontext_core::{Error, Result, check_class, range, read_json};
use serde::Deserialize;

use crate::{Sampler, Shift};

/// The sampling of a model, as diffusers' `scheduler_config.json` describes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SchedulerConfig {
    /// Shift of the sigmas.
    pub shift: Shift,
    /// The model's sampler.
    pub sampler: Sampler,
}

/// A sampling by Euler's method.
impl From<Shift> for SchedulerConfig {
    fn from(shift: Shift) -> Self {
        Self {
            shift,
            sampler: Sampler::Euler,
        }
    }
}

const EULER: &str = "FlowMatchEulerDiscreteScheduler";
const HEUN: &str = "FlowMatchHeunDiscreteScheduler";
const DPM: &str = "DPMSolverMultistepScheduler";

impl SchedulerConfig {
    /// Returns the name of diffusers' class.
    #[must_use]
    pub fn class_name(&self) -> &'static str {
        match self.sampler {
            Sampler::Euler | Sampler::Consistency => EULER,
            Sampler::Heun => HEUN,
            Sampler::Dpmpp2m => DPM,
        }
    }

    /// Reads diffusers' `scheduler_config.json`.
    ///
    /// The class gives the sampler: `FlowMatchEulerDiscreteScheduler` [`Sampler::Euler`], or
    /// [`Sampler::Consistency`] with `stochastic_sampling`; `FlowMatchHeunDiscreteScheduler` [`Sampler::Heun`];
    /// `DPMSolverMultistepScheduler` [`Sampler::Dpmpp2m`], if it is DPM-Solver++(2M) for flows. The sigmas are FLUX.1's
    /// with each of them: the pipelines of diffusers pass those to the first class, and cannot run the others.
    ///
    /// # Errors
    /// A checkpoint error if the file is not such a configuration, or asks for a schedule that FLUX.1 does
    /// not use.
    ///
    /// Source: huggingface/diffusers 0.38 `schedulers/`, the constructors of the three classes.
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json: Fields = read_json(path)?;
        check_class(path, "_class_name", json.class_name.as_deref(), &[EULER, HEUN, DPM])?;
        let refused = |reason: String| {
            let remedy = "fetch the configuration of FLUX.1's scheduler";
            Err(Error::config(path, format!("{reason}; {remedy}")))
        };
        if json.has_other_sigmas() {
            return refused(
                "it asks for karras, exponential, beta, lambda, terminal or inverted sigmas, which FLUX.1 does not use"
                    .to_owned(),
            );
        }
        if json.use_dynamic_shifting && json.time_shift_type != "exponential" {
            return refused(format!(
                "`time_shift_type` is {}, expected exponential",
                json.time_shift_type
            ));
        }
        let sampler = match json.class_name.as_deref() {
            Some(HEUN) => Sampler::Heun,
            Some(DPM) => Sampler::Dpmpp2m,
            _ if json.stochastic_sampling => Sampler::Consistency,
            _ => Sampler::Euler,
        };
        if sampler == Sampler::Dpmpp2m
            && let Some((field, got, expected)) = json.other_solver()
        {
            return refused(format!("`{field}` is {got}, expected {expected} for a model of flows"));
        }
        json.in_range().map_err(Error::in_config(path))?;
        let shift = if json.use_dynamic_shifting {
            Shift::Dynamic {
                base_shift: json.base_shift,
                max_shift: json.max_shift,
                base_tokens: json.base_image_seq_len,
                max_tokens: json.max_image_seq_len,
            }
        } else if sampler == Sampler::Dpmpp2m {
            Shift::Fixed(json.flow_shift)
        } else {
            Shift::Fixed(json.shift)
        };
        Ok(Self { shift, sampler })
    }
}

impl Shift {
    /// Reads the shift of diffusers' `scheduler_config.json`; see [`SchedulerConfig::from_json`].
    ///
    /// # Errors
    /// Those of [`SchedulerConfig::from_json`].
    pub fn from_json(path: impl AsRef<Path>) -> Result<Self> {
        Ok(SchedulerConfig::from_json(path)?.shift)
    }
}

/// The fields that determine sigmas and steps.
#[derive(Deserialize)]
#[serde(default)]
struct Fields {
    #[serde(rename = "_class_name")]
    class_name: Option<String>,
    shift: f64,
    flow_shift: f64,
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
    use_lu_lambdas: Option<bool>,
    invert_sigmas: bool,
    stochastic_sampling: bool,
    prediction_type: String,
    use_flow_sigmas: bool,
    algorithm_type: String,
    solver_type: String,
    solver_order: u32,
    final_sigmas_type: String,
    thresholding: bool,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            class_name: None,
            shift: 1.0,
            flow_shift: 1.0,
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
            use_lu_lambdas: None,
            invert_sigmas: false,
            stochastic_sampling: false,
            prediction_type: "epsilon".to_owned(),
            use_flow_sigmas: false,
            algorithm_type: "dpmsolver++".to_owned(),
            solver_type: "midpoint".to_owned(),
            solver_order: 2,
            final_sigmas_type: "zero".to_owned(),
            thresholding: false,
        }
    }
}

impl Fields {
    fn has_other_sigmas(&self) -> bool {
        let flags = [
            self.use_karras_sigmas,
            self.use_exponential_sigmas,
            self.use_beta_sigmas,
            self.use_lu_lambdas,
        ];
        flags.contains(&Some(true)) || self.shift_terminal.is_some() || self.invert_sigmas
    }

    /// Returns the first field by which a `DPMSolverMultistepScheduler` is not DPM-Solver++(2M) for flows, with its
    /// value and the expected one.
    fn other_solver(&self) -> Option<(&'static str, String, &'static str)> {
        let fields = [
            ("prediction_type", self.prediction_type.clone(), "flow_prediction"),
            ("use_flow_sigmas", self.use_flow_sigmas.to_string(), "true"),
            ("algorithm_type", self.algorithm_type.clone(), "dpmsolver++"),
            ("solver_type", self.solver_type.clone(), "midpoint"),
            ("solver_order", self.solver_order.to_string(), "2"),
            ("final_sigmas_type", self.final_sigmas_type.clone(), "zero"),
            ("thresholding", self.thresholding.to_string(), "false"),
        ];
        fields.into_iter().find(|(_, got, expected)| got != expected)
    }

    /// Checks the numbers: published shifts are 0.5 to 3, and lengths 256 to 4096.
    fn in_range(&self) -> Result<()> {
        range::within("shift", self.shift, Shift::RANGE)?;
        range::within("flow_shift", self.flow_shift, Shift::RANGE)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<SchedulerConfig, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scheduler_config.json");
        std::fs::write(&path, json).unwrap();
        SchedulerConfig::from_json(&path).map_err(|error| std::error::Error::source(&error).unwrap().to_string())
    }

    #[test]
    fn each_class_of_a_flow_gives_its_sampler_and_its_shift() {
        for (json, sampler, shift) in [
            (r#"{"shift": 3.0}"#, Sampler::Euler, Shift::Fixed(3.0)),
            (
                r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": true, "shift": 2.0}"#,
                Sampler::Consistency,
                Shift::Fixed(2.0),
            ),
            (
                r#"{"_class_name": "FlowMatchHeunDiscreteScheduler", "use_dynamic_shifting": true}"#,
                Sampler::Heun,
                Shift::dev(),
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction",
                    "use_flow_sigmas": true, "flow_shift": 3.0, "shift": 1.0}"#,
                Sampler::Dpmpp2m,
                Shift::Fixed(3.0),
            ),
        ] {
            assert_eq!(read(json), Ok(SchedulerConfig { shift, sampler }), "{json}");
        }
    }

    #[test]
    fn shifts_out_of_range_and_other_schedulers_are_refused_by_the_fields_name() {
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
                r#"{"_class_name": "UniPCMultistepScheduler"}"#,
                "`_class_name` is UniPCMultistepScheduler, expected FlowMatchEulerDiscreteScheduler",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler"}"#,
                "`prediction_type` is epsilon, expected flow_prediction for a model of flows; fetch the configuration",
            ),
            (
                r#"{"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction",
                    "use_flow_sigmas": true, "solver_order": 3}"#,
                "`solver_order` is 3, expected 2",
            ),
            (
                r#"{"use_karras_sigmas": true}"#,
                "karras, exponential, beta, lambda, terminal or inverted sigmas",
            ),
            (
                r#"{"stochastic_sampling": true, "invert_sigmas": true}"#,
                "inverted sigmas, which FLUX.1 does not use; fetch the configuration of FLUX.1's scheduler",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
