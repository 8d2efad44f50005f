//! The choice of a step cache as text.

use std::fmt;
use std::str::FromStr;

use kontext_core::Error;

use super::{FirstBlock, MagCache, StepCache, Taylor, TeaCache};

/// Names of the modes, for messages.
const NAMES: &str = "off, magcache, first-block, teacache or taylor";

impl StepCache {
    /// Returns each mode with its defaults.
    fn all() -> [Self; 5] {
        [
            Self::Off,
            Self::MagCache(MagCache::default()),
            Self::FirstBlock(FirstBlock::default()),
            Self::TeaCache(TeaCache::default()),
            Self::Taylor(Taylor::default()),
        ]
    }
}

impl fmt::Display for StepCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        let mut copy = *self;
        let name = copy.name();
        let Some(mut default) = Self::all().into_iter().find(|other| other.name() == name) else {
            return Ok(());
        };
        let mut separator = ':';
        for (value, default) in copy.parameters().iter().zip(default.parameters()) {
            let text = value.text();
            if text != default.text() {
                write!(f, "{separator}{}={text}", value.name)?;
                separator = ',';
            }
        }
        Ok(())
    }
}

impl FromStr for StepCache {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, values) = match text.split_once(':') {
            Some((name, values)) => (name, Some(values)),
            None => (text, None),
        };
        let Some(mut cache) = Self::all().into_iter().find(|cache| cache.name() == name) else {
            let expected = format!("{NAMES}, with parameters as in magcache:threshold=0.1,most_skips=5");
            return Err(Error::invalid("step_cache", expected, text));
        };
        for given in values.into_iter().flat_map(|values| values.split(',')) {
            let (key, value) = given.split_once('=').unwrap_or((given, ""));
            let mut parameters = cache.parameters();
            let names: Vec<_> = parameters.iter().map(|parameter| parameter.name).collect();
            match parameters.iter_mut().find(|parameter| parameter.name == key) {
                Some(parameter) => parameter.set(value)?,
                None if names.is_empty() => {
                    return Err(Error::invalid(
                        "step_cache",
                        format!("no parameters after {name}"),
                        given,
                    ));
                }
                None => {
                    let expected = format!("a parameter of {name} as NAME=NUMBER: {}", names.join(", "));
                    return Err(Error::invalid("step_cache", expected, given));
                }
            }
        }
        cache.validate()?;
        Ok(cache)
    }
}

impl From<StepCache> for String {
    fn from(cache: StepCache) -> Self {
        cache.to_string()
    }
}

impl TryFrom<String> for StepCache {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_read_from_its_text_and_written_so() {
        for text in [
            "off",
            "magcache",
            "magcache:threshold=0.1,most_skips=5",
            "magcache:start=0",
            "first-block:threshold=0.12,first=8,most_skips=2",
            "teacache:threshold=0.4,start=0.1,end=1",
            "teacache:most_skips=3",
            "taylor:interval=3,first=6",
        ] {
            let cache: StepCache = text.parse().unwrap();
            assert_eq!(cache.to_string(), text);
            cache.validate().unwrap();
            let json = serde_json::to_string(&cache).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<StepCache>(&json).unwrap(), cache);
        }
        // Defaults are not written.
        let cache: StepCache = "magcache:threshold=0.05".parse().unwrap();
        assert_eq!(cache.to_string(), "magcache");
        assert_eq!(cache, StepCache::MagCache(MagCache::default()));
        assert_eq!(StepCache::default(), "off".parse().unwrap());
    }

    #[test]
    fn a_wrong_text_is_refused_with_what_is_expected() {
        for (text, words) in [
            (
                "mag",
                "invalid step_cache: expected off, magcache, first-block, teacache or taylor",
            ),
            ("off:threshold=1", "expected no parameters after off, got threshold=1"),
            (
                "magcache:",
                "a parameter of magcache as NAME=NUMBER: threshold, most_skips, start, got ",
            ),
            (
                "taylor:threshold=1",
                "a parameter of taylor as NAME=NUMBER: interval, first, got threshold=1",
            ),
            (
                "magcache:threshold=x",
                "invalid threshold: expected a number from 0 to 10, got x",
            ),
            (
                "magcache:threshold=-1",
                "invalid threshold: expected a number from 0 to 10, got -1",
            ),
            (
                "magcache:threshold=NaN",
                "invalid threshold: expected a number from 0 to 10, got NaN",
            ),
            (
                "taylor:interval=0",
                "invalid interval: expected a number from 1 to 1000, got 0",
            ),
            (
                "taylor:interval=1.5",
                "invalid interval: expected a whole number from 1 to 1000, got 1.5",
            ),
            (
                "teacache:end=1.1",
                "invalid end: expected a number from 0 to 1, got 1.1",
            ),
            (
                "teacache:start=0.9,end=0.2",
                "invalid end: expected a number from 0.9 to 1, got 0.2",
            ),
            (
                "teacache:start=0.95",
                "invalid end: expected a number from 0.95 to 1, got 0.9",
            ),
        ] {
            let error = text.parse::<StepCache>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
