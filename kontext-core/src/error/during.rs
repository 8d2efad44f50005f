//! The stage of a failure in libtorch.

use super::{Error, Result};
use crate::Stage;

/// Extension of results that names the stage in which libtorch failed.
pub trait During<T> {
    /// Sets the stage of an [`Error::Torch`] without one, that is with [`Stage::Compute`].
    ///
    /// # Errors
    /// The original error, with its stage named.
    fn during(self, stage: Stage) -> Result<T>;
}

impl<T> During<T> for Result<T> {
    fn during(self, stage: Stage) -> Result<T> {
        self.map_err(|error| match error {
            Error::Torch {
                stage: Stage::Compute,
                source,
            } => Error::Torch { stage, source },
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torch_error_is_one_line_with_its_stage() {
        let error = tch::Tensor::f_arange(3, (tch::Kind::Float, tch::Device::Cpu))
            .and_then(|t| t.f_reshape([2, 2]))
            .map_err(Error::from);
        // The stage nearest to the failure is kept.
        let error = error.during(Stage::Decode).during(Stage::Other("testing")).unwrap_err();
        let Error::Torch { stage, source } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*stage, Stage::Decode);
        assert_eq!(error.to_string(), "libtorch failed while decoding the image");
        assert!(!source.to_string().contains('\n'));
        assert!(source.to_string().contains("invalid for input of size 3"), "{source}");
    }
}
