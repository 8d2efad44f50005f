//! Conventions that a run follows.

use kontext_core::Kind;
use serde::{Deserialize, Serialize};

/// Conventions that a run follows; the programs that run FLUX.1 Kontext differ in them.
///
/// | | `Native` | `Diffusers` | `Bfl` |
/// |---|---|---|---|
/// | noise is drawn in | f32 | the run's dtype | the run's dtype |
/// | nearest preferred size by | log of the ratio | ratio, sides floored to 16 | ratio |
/// | default target | the reference's grid | 1024x1024, rescaled to `max_area` | the reference's grid |
/// | image returned at | the input's size | the target's size | the target's size |
/// | latents between steps in | f32 | the run's dtype | the run's dtype |
/// | steps of samplers other than Euler are rounded | as rarely as possible | as in diffusers | latents only |
/// | times and guidance embedded in | f32 | the run's dtype | the run's dtype |
/// | queries, keys and GELU's input are rounded | as rarely as the device allows | as in diffusers | as in BFL's program |
/// | autoencoder runs in | the run's dtype | the run's dtype | f32 |
/// | levels are | rounded | rounded | truncated |
/// | an empty second prompt is | an empty text | the first prompt | an empty text |
/// | true CFG without a negative prompt | avoids the empty text | is ignored | is ignored |
/// | default steps, guidance | 28, 2.5 | 28, 3.5 | 30, 2.5 |
///
/// Both programs ignore the colour profiles of image files. A request holds decoded images: open them with
/// [`EmbeddedProfile::Ignore`](kontext_core::images::EmbeddedProfile) to follow them.
///
/// Kernels ([`PipelineBuilder::kernels`]) run in `Native` only, since they round once where the programs round after
/// each operation; `kontext_dit::Arithmetic` has the table. In f32 the roundings are the same.
///
/// [`PipelineBuilder::kernels`]: https://docs.rs/kontext/latest/kontext/struct.PipelineBuilder.html#method.kernels
///
/// Sigmas are computed in each program's order of operations, which shows in their last bits.
///
/// BFL's program runs in bf16 only; in another dtype, `Bfl` is that program with the dtype substituted for
/// bf16. Two of its behaviours are left out. It decodes with convolutions in bf16 and norms in f32; f32
/// throughout is nearer to that (0.9 to 1.1 % of the image's norm, with random weights) than bf16 throughout
/// (1.2 to 1.4 %). It also hides a watermark in the image, which changes one level of five in a photo, all
/// levels by 0.7 on average.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conformance {
    /// This library's own conventions: no avoidable rounding, and images are returned at the input's size.
    #[default]
    #[serde(alias = "kontext")] // Its name in requests of earlier versions.
    Native,
    /// huggingface/diffusers 0.38, `FluxKontextPipeline`.
    Diffusers,
    /// black-forest-labs/flux@802fb47, `cli_kontext.py`.
    Bfl,
}

impl Conformance {
    /// Returns the default number of steps.
    #[must_use]
    pub fn default_steps(self) -> usize {
        match self {
            Self::Native | Self::Diffusers => 28,
            Self::Bfl => 30,
        }
    }

    /// Returns the default guidance value.
    #[must_use]
    pub fn default_guidance(self) -> f64 {
        match self {
            Self::Native | Self::Bfl => 2.5,
            Self::Diffusers => 3.5,
        }
    }

    /// Returns the dtype in which noise is drawn and latents are kept between steps, for a run in dtype
    /// `kind`.
    #[must_use]
    pub fn latents_kind(self, kind: Kind) -> Kind {
        match self {
            Self::Native => Kind::Float,
            Self::Diffusers | Self::Bfl => kind,
        }
    }

    /// Returns the dtype in which the autoencoder runs, for a run in dtype `kind`.
    #[must_use]
    pub fn vae_kind(self, kind: Kind) -> Kind {
        match self {
            Self::Native | Self::Diffusers => kind,
            Self::Bfl => Kind::Float,
        }
    }
}
