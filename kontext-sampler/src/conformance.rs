//! Whose conventions a run follows.

use kontext_core::Kind;
use serde::{Deserialize, Serialize};

/// Whose conventions a run follows, where the programs that run FLUX.1 Kontext differ.
///
/// | | `Kontext` | `Diffusers` | `Bfl` |
/// |---|---|---|---|
/// | noise is drawn in | f32 | the run's dtype | the run's dtype |
/// | nearest preferred size by | log of the ratio | ratio, sides floored to 16 | ratio |
/// | default target | the reference's grid | 1024x1024, rescaled to `max_area` | the reference's grid |
/// | picture returned at | the input's size | the target's size | the target's size |
/// | latents between steps in | f32 | the run's dtype | the run's dtype |
/// | times and guidance embedded in | f32 | the run's dtype | the run's dtype |
/// | autoencoder runs in | the run's dtype | the run's dtype | f32 |
/// | levels are | rounded | rounded | cut off |
/// | default steps, guidance | 28, 2.5 | 28, 3.5 | 30, 2.5 |
///
/// Sigmas are computed in the order of operations of each, which shows in their last bits.
///
/// BFL's program runs in bf16 only; in another dtype, `Bfl` is that program with the dtype in place
/// of bf16. Two things of it are left out. It decodes with convolutions in bf16 and norms in f32;
/// f32 throughout is nearer to that (0.9 to 1.1 % of the picture's norm, with random weights) than
/// bf16 throughout (1.2 to 1.4 %). And it hides a watermark in the picture, which moves one level of
/// five in a photo, all levels by 0.7 on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conformance {
    /// This library's own: no value is rounded that need not be, and pictures come back as they went in.
    #[default]
    Kontext,
    /// huggingface/diffusers 0.38, `FluxKontextPipeline`.
    Diffusers,
    /// black-forest-labs/flux@802fb47, `cli_kontext.py`.
    Bfl,
}

impl Conformance {
    /// Default number of steps.
    #[must_use]
    pub fn default_steps(self) -> usize {
        match self {
            Self::Kontext | Self::Diffusers => 28,
            Self::Bfl => 30,
        }
    }

    /// Default guidance value.
    #[must_use]
    pub fn default_guidance(self) -> f64 {
        match self {
            Self::Kontext | Self::Bfl => 2.5,
            Self::Diffusers => 3.5,
        }
    }

    /// The kind in which noise is drawn and latents are kept between steps, in a run of kind `kind`.
    #[must_use]
    pub fn latents_kind(self, kind: Kind) -> Kind {
        match self {
            Self::Kontext => Kind::Float,
            Self::Diffusers | Self::Bfl => kind,
        }
    }

    /// The kind in which the autoencoder runs, in a run of kind `kind`.
    #[must_use]
    pub fn vae_kind(self, kind: Kind) -> Kind {
        match self {
            Self::Kontext | Self::Diffusers => kind,
            Self::Bfl => Kind::Float,
        }
    }
}
