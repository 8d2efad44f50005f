//! Reuse of references as text.

use std::fmt;
use std::str::FromStr;

use kontext_core::{Error, Result};

use super::{EditedTokens, ReferenceReuse, Refresh};

/// Form of a text.
const EXPECTED: &str = "`references` or `region`, and after a colon, each once, any of warmup=, refresh= or every=, \
                        last=, and of `region` threshold= and error=";

impl fmt::Display for ReferenceReuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = Self::default();
        let mut parameters = Vec::new();
        if self.warmup != plain.warmup {
            parameters.push(format!("warmup={}", self.warmup));
        }
        match &self.refresh {
            refresh if *refresh == plain.refresh => {}
            Refresh::At(steps) => {
                let steps: Vec<_> = steps.iter().map(usize::to_string).collect();
                parameters.push(format!("refresh={}", steps.join("+")));
            }
            Refresh::Every(steps) => parameters.push(format!("every={steps}")),
        }
        if self.last != plain.last {
            parameters.push(format!("last={}", self.last));
        }
        if let Some(edited) = &self.edited {
            let plain = EditedTokens::default();
            for (name, value, default) in [
                ("threshold", edited.threshold, plain.threshold),
                ("error", edited.error, plain.error),
            ] {
                if value != default {
                    parameters.push(format!("{name}={value}"));
                }
            }
        }
        f.write_str(if self.edited.is_some() { "region" } else { "references" })?;
        if parameters.is_empty() {
            return Ok(());
        }
        write!(f, ":{}", parameters.join(","))
    }
}

impl FromStr for ReferenceReuse {
    type Err = Error;

    /// Reads a text such as `region:threshold=0.9`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another text, and those of [`ReferenceReuse::validate`].
    fn from_str(text: &str) -> Result<Self> {
        let (mode, parameters) = match text.split_once(':') {
            Some((mode, parameters)) => (mode, Some(parameters)),
            None => (text, None),
        };
        let mut reuse = match mode {
            "references" => Self::default(),
            "region" => Self::region(),
            _ => return Err(Error::invalid("reference reuse", EXPECTED, text)),
        };
        let mut set = Vec::new();
        for parameter in parameters.into_iter().flat_map(|parameters| parameters.split(',')) {
            let name = reuse.set(parameter).filter(|name| !set.contains(name));
            set.push(name.ok_or_else(|| Error::invalid("reference reuse", EXPECTED, parameter))?);
        }
        reuse.validate()?;
        Ok(reuse)
    }
}

impl ReferenceReuse {
    /// Sets the number of a text `name=value` and returns the field's name; `None` if there is no such
    /// number.
    fn set(&mut self, parameter: &str) -> Option<&'static str> {
        let (name, value) = parameter.split_once('=')?;
        match (name, &mut self.edited) {
            ("warmup", _) => {
                self.warmup = value.parse().ok()?;
                Some("warmup")
            }
            ("last", _) => {
                self.last = value.parse().ok()?;
                Some("last")
            }
            ("every", _) => {
                self.refresh = Refresh::Every(value.parse().ok()?);
                Some("refresh")
            }
            ("refresh", _) => {
                let steps = value.split('+').filter(|_| !value.is_empty());
                self.refresh = Refresh::At(steps.map(str::parse).collect::<std::result::Result<_, _>>().ok()?);
                Some("refresh")
            }
            ("threshold", Some(edited)) => {
                edited.threshold = value.parse().ok()?;
                Some("threshold")
            }
            ("error", Some(edited)) => {
                edited.error = value.parse().ok()?;
                Some("error")
            }
            _ => None,
        }
    }
}

impl From<ReferenceReuse> for String {
    fn from(reuse: ReferenceReuse) -> Self {
        reuse.to_string()
    }
}

impl TryFrom<String> for ReferenceReuse {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_are_written() {
        for text in [
            "references",
            "region",
            "references:every=7",
            "references:warmup=4,refresh=10+19,last=1",
            "references:refresh=",
            "region:threshold=0.9,error=0",
        ] {
            let reuse: ReferenceReuse = text.parse().unwrap();
            assert_eq!(reuse.to_string(), text);
            let json = serde_json::to_string(&reuse).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(serde_json::from_str::<ReferenceReuse>(&json).unwrap(), reuse);
        }
    }

    #[test]
    fn other_texts_and_numbers_are_refused_by_name() {
        for (text, expected) in [
            ("regions", "expected `references` or `region`"),
            ("references:threshold=0.9", "got threshold=0.9"),
            ("references:warmup", "got warmup"),
            ("references:", "got "),
            ("references:,,", "got "),
            ("references:refresh=10+", "got refresh=10+"),
            (
                "references:every=7,refresh=15",
                "refresh= or every=, last=, and of `region` threshold= and error=, got refresh=15",
            ),
            (
                "references:last=1,last=2",
                "each once, any of warmup=, refresh= or every=, last=, and of `region` threshold= and error=, got last=2",
            ),
            ("references:warmup=six", "got warmup=six"),
            (
                "references:warmup=0",
                "invalid warmup: expected a number from 1 to 28, got 0",
            ),
            (
                "references:last=29",
                "invalid last: expected a number from 0 to 28, got 29",
            ),
            (
                "references:every=0",
                "invalid every: expected a number from 1 to 28, got 0",
            ),
            (
                "references:refresh=15+28",
                "invalid refresh: expected steps below 28, counted from 0, got 28",
            ),
            (
                "region:threshold=1.5",
                "invalid threshold: expected a number from -1 to 1, got 1.5",
            ),
            (
                "region:error=NaN",
                "invalid error: expected a number from 0 to 1, got NaN",
            ),
        ] {
            let error = text.parse::<ReferenceReuse>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(serde_json::from_str::<ReferenceReuse>(&format!("{text:?}")).is_err());
        }
    }
}
