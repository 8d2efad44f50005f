//! The fields in which two recipes differ.

use std::collections::{BTreeMap, BTreeSet};

use kontext_core::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A recipe that a resumed run compares with that of its state. Fields are named as in TOML, `rate.peak`; a
/// table's name is that of all its fields.
pub(crate) trait Comparable: Serialize + DeserializeOwned {
    /// Fields that may differ in any resumed run: they leave the trained values as they are.
    const FREE: &'static [&'static str];
    /// Fields that differ in no resumed run: the state's tensors are of their values.
    const FIXED: &'static [&'static str];

    /// Returns the names of further fields that may differ in this run.
    fn accepted(&self) -> &[String];
}

/// A field of a recipe, and its values in the state and in the run.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) field: String,
    pub(super) before: String,
    pub(super) now: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {} and is {}", self.field, self.before, self.now)
    }
}

/// Returns `true` if `field` is `name`, or a field of the table `name`.
pub(super) fn within(field: &str, name: &str) -> bool {
    field
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Returns the fields of `now` that differ from `before` and are not free.
pub(super) fn changes<R: Comparable>(before: &R, now: &R) -> Result<Vec<Change>> {
    let (before, now) = (fields(before)?, fields(now)?);
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let value = |fields: &BTreeMap<String, String>, name: &str| {
        fields.get(name).map_or_else(|| "not set".to_owned(), String::clone)
    };
    Ok(names
        .into_iter()
        .filter(|name| !R::FREE.iter().any(|free| within(name, free)))
        .map(|name| Change {
            field: name.clone(),
            before: value(&before, name),
            now: value(&now, name),
        })
        .filter(|change| change.before != change.now)
        .collect())
}

/// Returns the values of a recipe by the names of their fields, without those that are not set.
fn fields(recipe: &impl Serialize) -> Result<BTreeMap<String, String>> {
    let mut fields = BTreeMap::new();
    flatten("", &serde_json::to_value(recipe).map_err(unwritable)?, &mut fields);
    Ok(fields)
}

fn flatten(name: &str, value: &Value, fields: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(table) => {
            for (field, value) in table {
                let name = if name.is_empty() {
                    field.clone()
                } else {
                    format!("{name}.{field}")
                };
                flatten(&name, value, fields);
            }
        }
        Value::Null => {}
        value => drop(fields.insert(name.to_owned(), value.to_string())),
    }
}

/// Returns a recipe as TOML.
pub(super) fn text(recipe: &impl Serialize) -> Result<String> {
    toml::to_string_pretty(recipe).map_err(unwritable)
}

fn unwritable(error: impl std::fmt::Display) -> Error {
    Error::invalid(
        "recipe",
        "values that a file of text can hold",
        format!("another one ({error})"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_compared_with_itself_after_it_was_stored() {
        let recipe = crate::AutoencoderRecipe {
            seed: u64::MAX,
            clip: f64::MIN_POSITIVE,
            ema: 1.0 / 3.0,
            resume: vec!["a \"b\"\n[c]".to_owned()],
            ..crate::AutoencoderRecipe::default()
        };
        let again = toml::from_str(&text(&recipe).unwrap()).unwrap();
        assert!(changes(&recipe, &again).unwrap().is_empty());
        assert_eq!(fields(&recipe).unwrap(), fields(&again).unwrap());
        assert_eq!(fields(&recipe).unwrap()["rate.warmup"], "100");
    }

    #[cfg(unix)]
    #[test]
    fn a_recipe_that_cannot_be_stored_is_refused_before_the_training() {
        use std::os::unix::ffi::OsStringExt;
        let path = std::path::PathBuf::from(std::ffi::OsString::from_vec(vec![b'a', 0xff]));
        let error = text(&BTreeMap::from([("out", path)])).unwrap_err();
        assert!(
            error.to_string().starts_with("invalid recipe: expected values"),
            "{error}"
        );
    }
}
