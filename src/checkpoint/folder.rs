//! Checks of a model's folder before its parts are looked for.

use std::path::Path;

use kontext_core::{Error, Result, check_class, read_json};
use serde_json::{Map, Value};

/// Refuses the `model_index.json` of a pipeline of another model.
pub(super) fn check_pipeline(index: &Path) -> Result<()> {
    let json: Map<String, Value> = read_json(index)?;
    let class = json.get("_class_name").and_then(Value::as_str);
    // All of FLUX.1's pipelines run the same parts.
    let other = class.filter(|class| !class.starts_with("Flux") || class.starts_with("Flux2"));
    check_class(index, "_class_name", other, &["FluxKontextPipeline", "FluxPipeline"])
}

/// Refuses a path that is not a readable folder, with a hint for a mistyped folder or a file.
pub(super) fn check_folder(folder: &Path) -> Result<()> {
    use std::io::{Error as IoError, ErrorKind};
    let expected = "expected the folder of a model, with diffusers' folders or BFL's single files";
    let refused = |kind, got: &str| {
        let source = IoError::new(kind, format!("{got}, {expected}; check the path"));
        Err(Error::Io {
            path: folder.to_owned(),
            source,
        })
    };
    if folder.is_file() {
        return refused(ErrorKind::NotADirectory, "it is a file");
    }
    match std::fs::read_dir(folder) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => refused(error.kind(), "there is no such folder"),
        Err(error) => Err(Error::io(folder)(error)),
    }
}
