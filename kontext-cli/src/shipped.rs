//! Files of the repository, for programs that run in a clone.

use std::path::{Path, PathBuf};

/// Returns the folder of the small model, `models/kontext-emoji`.
#[must_use]
pub fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("models")
        .join("kontext-emoji")
}

/// Returns the path of a file in `examples/data`.
#[must_use]
pub fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .with_file_name("examples")
        .join("data")
        .join(name)
}
