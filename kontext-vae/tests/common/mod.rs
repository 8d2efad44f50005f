//! Shared test helpers: fixtures and comparisons.
#![allow(
    dead_code,
    clippy::print_stdout,
    reason = "each test program uses a part, and says what it skips"
)]

use std::path::{Path, PathBuf};

use kontext_core::Tensor;
use kontext_nn::Weights;

/// Tensors produced by the reference implementation, with the configurations of its models.
pub(crate) struct Fixture(Weights);

impl Fixture {
    pub(crate) fn open() -> Self {
        Self(Weights::open(kontext_fixtures::reference("vae.safetensors")).unwrap())
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        self.0.tensor(name, &self.0.shape_of(name).unwrap()).unwrap()
    }

    /// Writes the configuration of a model to a `config.json` in `folder`.
    pub(crate) fn write_config(&self, model: &str, folder: &Path) -> PathBuf {
        let path = folder.join("config.json");
        std::fs::write(&path, &self.0.store().metadata()[model]).unwrap();
        path
    }

    /// Returns the weights of the reference's model.
    pub(crate) fn weights(&self, model: &str) -> Weights {
        let seeds: serde_json::Value = serde_json::from_str(&self.0.store().metadata()["seeds"]).unwrap();
        Weights::synthetic(seeds[model].as_u64().unwrap())
    }
}

/// Computes `|got - expected| / |expected|` in the Euclidean norm.
pub(crate) fn relative_error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(got.size(), expected.size());
    ((got - expected).norm() / expected.norm()).double_value(&[])
}

pub(crate) fn assert_close(got: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let error = relative_error(got, expected);
    assert!(
        error < tolerance,
        "{what}: relative error {error:.2e}, allowed {tolerance:.0e}"
    );
}

/// Returns the path of an asset that some tests use; prints a note and returns `None` if it is absent.
pub(crate) fn asset(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/assets")
        .join(path);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no {}", path.display());
    None
}
