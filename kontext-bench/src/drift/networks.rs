//! The networks that compare the images of walks.

use std::fmt;

use crate::metrics::{Embedder, Perceptual};

/// The networks that compare a result with another image; all are optional.
#[derive(Clone, Copy, Default)]
pub struct Networks<'a> {
    /// Measures distance, and also identity if no embedder is given.
    pub perceptual: Option<&'a Perceptual>,
    /// Measures identity, such as a network for faces.
    pub embedder: Option<&'a dyn Embedder>,
}

impl<'a> Networks<'a> {
    /// Returns the network of identity.
    #[must_use]
    pub fn identity(&self) -> Option<&'a dyn Embedder> {
        let features = || self.perceptual.map(|perceptual| perceptual.features() as &dyn Embedder);
        self.embedder.or_else(features)
    }
}

impl fmt::Debug for Networks<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Networks")
            .field("perceptual", &self.perceptual.map(Perceptual::name))
            .field("identity", &self.identity().map(Embedder::name))
            .finish()
    }
}
