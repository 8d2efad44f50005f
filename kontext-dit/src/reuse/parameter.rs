//! Parameters of the modes by name.

use std::ops::RangeInclusive;

use kontext_core::{Error, Result, range};

/// Upper bound of thresholds: a change of several times the thing itself.
const LARGEST_THRESHOLD: f64 = 10.0;
/// Upper bound of numbers of steps: as many as a run may have.
pub(super) const MOST_STEPS: usize = 1000;

/// Parameter of a mode: its name, its value and its range.
#[derive(Debug)]
pub(super) struct Parameter<'a> {
    pub(super) name: &'static str,
    value: Value<'a>,
}

#[derive(Debug)]
enum Value<'a> {
    Real(&'a mut f64, RangeInclusive<f64>),
    Count(&'a mut usize, RangeInclusive<usize>),
}

impl<'a> Parameter<'a> {
    pub(super) fn threshold(value: &'a mut f64) -> Self {
        Self::real("threshold", value, 0.0..=LARGEST_THRESHOLD)
    }

    /// Returns a share of a run's steps.
    pub(super) fn share(name: &'static str, value: &'a mut f64) -> Self {
        Self::real(name, value, 0.0..=1.0)
    }

    fn real(name: &'static str, value: &'a mut f64, range: RangeInclusive<f64>) -> Self {
        let value = Value::Real(value, range);
        Self { name, value }
    }

    /// Returns a number of steps of at least `least`.
    pub(super) fn steps(name: &'static str, value: &'a mut usize, least: usize) -> Self {
        let value = Value::Count(value, least..=MOST_STEPS);
        Self { name, value }
    }

    /// Checks the value.
    pub(super) fn check(&self) -> Result<()> {
        match &self.value {
            Value::Real(value, range) => range::within(self.name, **value, range.clone()).map(drop),
            Value::Count(value, range) => range::within(self.name, **value, range.clone()).map(drop),
        }
    }

    /// Sets the value from its text.
    pub(super) fn set(&mut self, text: &str) -> Result<()> {
        let expected = match &mut self.value {
            Value::Real(value, range) => {
                let given = text.parse();
                if let Ok(given) = given {
                    **value = given;
                    return self.check();
                }
                format!("a number from {} to {}", range.start(), range.end())
            }
            Value::Count(value, range) => {
                if let Ok(given) = text.parse() {
                    **value = given;
                    return self.check();
                }
                format!("a whole number from {} to {}", range.start(), range.end())
            }
        };
        Err(Error::invalid(self.name, expected, text))
    }

    /// Returns the value as text.
    pub(super) fn text(&self) -> String {
        match &self.value {
            Value::Real(value, _) => value.to_string(),
            Value::Count(value, _) => value.to_string(),
        }
    }
}
