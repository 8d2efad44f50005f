//! Guidance values of the steps of a run.

use std::fmt;
use std::str::FromStr;

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

use crate::schedule::MOST_STEPS;

/// One embedded guidance value for each step of a run.
///
/// It is printed and parsed as values with their numbers of steps.
///
/// # Example
/// ```
/// use kontext_sampler::GuidanceSchedule;
/// let schedule: GuidanceSchedule = "3.5*2,2.5".parse()?;
/// assert_eq!(schedule.values, [3.5, 3.5, 2.5]);
/// assert_eq!(schedule.to_string(), "3.5*2,2.5");
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
#[non_exhaustive]
pub struct GuidanceSchedule {
    /// The values, that of the first step first.
    pub values: Vec<f64>,
}

impl From<Vec<f64>> for GuidanceSchedule {
    fn from(values: Vec<f64>) -> Self {
        Self { values }
    }
}

impl<const N: usize> From<[f64; N]> for GuidanceSchedule {
    fn from(values: [f64; N]) -> Self {
        values.to_vec().into()
    }
}

impl fmt::Display for GuidanceSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for run in self.values.chunk_by(|a, b| a == b) {
            write!(f, "{separator}{}", run.first().copied().unwrap_or_default())?;
            if run.len() > 1 {
                write!(f, "*{}", run.len())?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for GuidanceSchedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let expected = || format!("values with numbers of steps, as in 3.5*4,2.5*24, for at most {MOST_STEPS} steps");
        let wrong = || Error::invalid("guidance_schedule", expected(), text);
        let mut values = Vec::new();
        for item in text.split(',') {
            let (value, count) = item.split_once('*').unwrap_or((item, "1"));
            let value: f64 = value.trim().parse().map_err(|_| wrong())?;
            let count: usize = count.trim().parse().map_err(|_| wrong())?;
            if count == 0 || count > MOST_STEPS - values.len() {
                return Err(wrong());
            }
            values.resize(values.len() + count, value);
        }
        Ok(Self { values })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_printed_with_their_numbers_of_steps_and_read_back() {
        for (values, text) in [
            (vec![2.5], "2.5"),
            (vec![4.0, 4.0, 4.0, 1.0], "4*3,1"),
            (vec![1.0, -2.0, 1.0], "1,-2,1"),
        ] {
            let schedule = GuidanceSchedule::from(values);
            assert_eq!(schedule.to_string(), text);
            assert_eq!(text.parse::<GuidanceSchedule>().unwrap(), schedule);
        }
        assert_eq!(
            " 4 * 2 , 1 ".parse::<GuidanceSchedule>().unwrap().values,
            [4.0, 4.0, 1.0]
        );
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_an_example() {
        for text in [
            "",
            "a",
            "1,",
            "1*",
            "1*0",
            "1*-1",
            "1*1001",
            "1*600,2*600",
            "1*99999999999999999999",
        ] {
            let error = text.parse::<GuidanceSchedule>().unwrap_err().to_string();
            assert!(error.contains("as in 3.5*4,2.5*24"), "{error}");
        }
    }
}
