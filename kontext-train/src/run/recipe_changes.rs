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
    /// Tables whose fields depend on their values.
    const OPEN: &'static [&'static str];
    /// Names of the digests of files that a state is compared with, too.
    const FILES: &'static [&'static str];
    /// Fields that define the loss. So do the files.
    const LOSS: &'static [&'static str];

    /// Returns the names of further fields, and of files, that may differ in this run.
    fn accepted(&self) -> &[String];

    /// Returns the fields that cannot differ from these values before, next to [`Comparable::FIXED`].
    fn fixed_after(&self, _before: &Self) -> &'static [&'static str] {
        &[]
    }
}

/// Checks that each accepted name is that of a field or of files that could differ otherwise.
///
/// # Errors
/// [`Error::InvalidArgument`] with the first name that has no effect.
pub(crate) fn check_accepted<R: Comparable>(recipe: &R) -> Result<()> {
    if recipe.accepted().is_empty() {
        return Ok(());
    }
    let value = serde_json::to_value(recipe).map_err(unwritable)?;
    let mut fields = BTreeSet::new();
    flatten("", &value, &mut |field, _| {
        fields.insert(field.to_owned());
    });
    let is_field = |name: &str| {
        let open = R::OPEN.iter().any(|table| covers(table, name));
        open || fields.iter().any(|field| covers(name, field))
    };
    for name in recipe.accepted() {
        if R::FILES.contains(&name.as_str()) {
            continue;
        }
        let problem = if R::FIXED.iter().any(|fixed| covers(fixed, name)) {
            "which cannot change within a run; start in another folder"
        } else if R::FREE.iter().any(|free| covers(free, name)) {
            "which may always differ; leave it out"
        } else if is_field(name) {
            continue;
        } else {
            "which names none"
        };
        let files = R::FILES.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>();
        let expected = format!(
            "fields that may differ, as `steps` or `rate.peak`, or {}",
            files.join(", ")
        );
        return Err(Error::invalid(
            "accept_changes",
            expected,
            format!("`{name}`, {problem}"),
        ));
    }
    Ok(())
}

/// A field of a recipe, and its values before and now. It is displayed as `steps was 4 and is 6`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// The field, as `rate.peak`.
    pub field: String,
    /// The value before, or `not set`.
    pub before: String,
    /// The value now, or `not set`.
    pub now: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was {} and is {}", self.field, self.before, self.now)
    }
}

/// Returns `true` if `field` is `name`, or a field of the table `name`.
pub(super) fn covers(name: &str, field: &str) -> bool {
    field
        .strip_prefix(name)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Returns the fields of `now` that differ from `before` and are not free.
pub(super) fn changes<R: Comparable>(before: &R, now: &R) -> Result<Vec<Change>> {
    let mut changes = differences(before, now)?;
    changes.retain(|change| !R::FREE.iter().any(|free| covers(free, &change.field)));
    Ok(changes)
}

/// Returns the fields in which two recipes differ, with their values in each.
///
/// # Errors
/// [`Error::InvalidArgument`] for a recipe that a file of text cannot hold.
pub fn differences(before: &impl Serialize, now: &impl Serialize) -> Result<Vec<Change>> {
    let (before, now) = (fields(before)?, fields(now)?);
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let value = |fields: &BTreeMap<String, String>, name: &str| {
        fields.get(name).map_or_else(|| "not set".to_owned(), String::clone)
    };
    Ok(names
        .into_iter()
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
    let value = serde_json::to_value(recipe).map_err(unwritable)?;
    flatten("", &value, &mut |field, value| {
        if !value.is_null() {
            fields.insert(field.to_owned(), value.to_string());
        }
    });
    Ok(fields)
}

/// Passes on each field that is no table, with its name.
fn flatten(name: &str, value: &Value, field: &mut dyn FnMut(&str, &Value)) {
    match value {
        Value::Object(table) => {
            for (inner, value) in table {
                let name = if name.is_empty() {
                    inner.clone()
                } else {
                    format!("{name}.{inner}")
                };
                flatten(&name, value, field);
            }
        }
        value => field(name, value),
    }
}

/// Returns a recipe as TOML.
pub(crate) fn text(recipe: &impl Serialize) -> Result<String> {
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
            accept_changes: vec!["a \"b\"\n[c]".to_owned()],
            ..crate::AutoencoderRecipe::default()
        };
        let again = toml::from_str(&text(&recipe).unwrap()).unwrap();
        assert!(changes(&recipe, &again).unwrap().is_empty());
        assert_eq!(fields(&recipe).unwrap(), fields(&again).unwrap());
        assert_eq!(fields(&recipe).unwrap()["rate.warmup"], "100");
    }

    #[test]
    fn names_that_have_no_effect_are_refused() {
        let check = |name: &str| {
            let accept_changes = vec!["steps".to_owned(), name.to_owned()];
            check_accepted(&crate::AutoencoderRecipe {
                accept_changes,
                ..crate::AutoencoderRecipe::default()
            })
            .map_err(|error| error.to_string())
        };
        for name in ["rate", "rate.peak", "size", "image files", "optimizer.muon"] {
            check(name).unwrap();
        }
        for (name, words) in [
            ("rat", "got `rat`, which names none"),
            ("rate.peak.x", "which names none"),
            ("images", "or `image files`, got `images`, which names none"),
            ("", "which names none"),
            ("save", "`save`, which may always differ; leave it out"),
            ("channels", "`channels`, which cannot change within a run"),
        ] {
            let error = check(name).unwrap_err();
            assert!(
                error.starts_with("invalid accept_changes: ") && error.contains(words),
                "{error}"
            );
        }
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
