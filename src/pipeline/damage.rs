//! Damaged weights, found after a stage has failed numerically.

use kontext_core::{Error, ModelPart};
use kontext_nn::Weights;

use super::Pipeline;

impl Pipeline {
    /// Finds the damaged tensor that caused a non-finite result.
    pub(super) fn name_damage(&self, error: Error) -> Error {
        let (Error::NotFinite { stage, .. }, Some(checkpoint)) = (&error, self.checkpoint()) else {
            return error;
        };
        let path = match stage.part() {
            Some(ModelPart::T5) => &checkpoint.t5,
            Some(ModelPart::Clip) => &checkpoint.clip,
            Some(ModelPart::Transformer) => &checkpoint.transformer,
            Some(ModelPart::Autoencoder) => &checkpoint.vae,
            _ => return error,
        };
        match Weights::open(path).and_then(|w| w.store().first_not_finite()) {
            Ok(Some(tensor)) => {
                let hint = format!(
                    "tensor `{tensor}` of {} holds NaN or infinity; fetch the file again",
                    path.display()
                );
                Error::NotFinite { stage: *stage, hint }
            }
            _ => error,
        }
    }
}
