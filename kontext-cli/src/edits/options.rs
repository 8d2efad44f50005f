//! Options of a request in a manifest, by the names that the library writes them with.

use kontext::Request;
use serde_json::{Map, Value};

/// Options that are texts with variables.
pub(super) const TEXTS: [&str; 4] = ["prompt", "prompt_2", "negative_prompt", "negative_prompt_2"];

/// Returns the names of all options: those that reading an unknown one lists.
pub(super) fn names() -> Vec<String> {
    let listed = read("?", Value::Null).err().unwrap_or_default();
    let names = listed.split('`').skip(1).step_by(2).map(str::to_owned);
    names.filter(|name| name != "?").collect()
}

/// Returns the checked value of an option.
///
/// # Errors
/// The reason, if it is no value of this option.
pub(super) fn value(name: &str, value: &Value, is_csv: bool) -> Result<Value, String> {
    let from_cell = || match value {
        // A cell is a text only where no other value is meant.
        Value::String(cell) if is_csv && !TEXTS.contains(&name) => read(name, serde_json::from_str(cell).ok()?).ok(),
        _ => None,
    };
    match from_cell() {
        Some(value) => Ok(value),
        None => read(name, value.clone()).map_err(|error| format!("`{name}`: {error}")),
    }
}

fn read(name: &str, value: Value) -> Result<Value, String> {
    let fields: Map<String, Value> = [(name.to_owned(), value.clone())].into_iter().collect();
    match serde_json::from_value::<Request>(Value::Object(fields)) {
        Ok(_) => Ok(value),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::job::written;
    use super::*;

    #[test]
    fn the_options_of_a_request_are_those_that_it_writes_and_more() {
        let names = names();
        let request = written(&Request::generate("").negative_prompt("")).unwrap();
        let more = ["steps", "shift", "prompt_2"];
        for name in request.keys().map(String::as_str).chain(more) {
            assert!(names.iter().any(|option| option == name), "{name}: {names:?}");
        }
        for name in ["images", "noise", "?"] {
            assert!(!names.iter().any(|option| option == name), "{name}: {names:?}");
        }
    }
}
