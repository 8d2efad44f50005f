//! Warnings of a plan: settings of the request or the builder without effect, and results that may surprise.

use std::fmt;

use kontext_core::ModelPart;
use kontext_formats::Quantize;
use kontext_sampler::{Conformance, Grid, References, Size};

/// A setting of a request, or of its pipeline's builder, that a run ignores, or a result that may not be the expected one.
///
/// It prints as a sentence that says what to set. All of them are known before any work: see
/// [`Plan::warnings`](crate::Plan::warnings).
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// The negative prompt has no effect, because [`Request::true_cfg`](crate::Request::true_cfg) is not
    /// above 1. An empty one is not reported.
    NegativePromptIgnored {
        /// The scale.
        true_cfg: f64,
    },
    /// The scale of true classifier-free guidance has no effect: it is below 1, or there is no negative
    /// prompt in conventions that need one.
    TrueCfgIgnored {
        /// The scale.
        true_cfg: f64,
        /// The run's conventions.
        conformance: Conformance,
    },
    /// [`Request::prompt_weights`](crate::Request::prompt_weights) has no effect: the conventions have no weights, and
    /// parentheses are text.
    PromptWeightsIgnored {
        /// The run's conventions.
        conformance: Conformance,
    },
    /// [`Request::cfg_mode`](crate::Request::cfg_mode) has no effect without true classifier-free guidance.
    CfgModeIgnored,
    /// The guidance value has no effect, because the model embeds none (FLUX.1-schnell).
    GuidanceIgnored {
        /// The value.
        guidance: f64,
    },
    /// [`Request::guidance_schedule`](crate::Request::guidance_schedule) has no effect, because the model embeds no
    /// guidance.
    GuidanceScheduleIgnored,
    /// The guidance value of the model's own [`ModelDefaults`](crate::ModelDefaults) has no effect, because the
    /// model embeds none.
    DefaultGuidanceIgnored {
        /// The value.
        guidance: f64,
    },
    /// The number of steps has no effect next to [`Request::sigmas`](crate::Request::sigmas).
    StepsIgnored {
        /// The number.
        steps: usize,
    },
    /// The shift has no effect next to [`Request::sigmas`](crate::Request::sigmas), which only diffusers shifts.
    ShiftIgnored {
        /// The shift.
        shift: f64,
    },
    /// The metadata of the run's LoRAs asks for different values of a setting; that of the first one is taken.
    LorasDisagree {
        /// Name of the setting.
        setting: &'static str,
    },
    /// The seed has no effect next to [`Request::noise`](crate::Request::noise), unless the steps add noise.
    SeedIgnored {
        /// The seed.
        seed: u64,
    },
    /// [`Request::step_cache`](crate::Request::step_cache) has no effect: it skips none of the steps.
    StepCacheIgnored {
        /// Their number.
        steps: usize,
    },
    /// [`Request::reference_reuse`](crate::Request::reference_reuse) has no effect without reference images.
    ReferenceReuseIgnored,
    /// [`Request::reference_reuse`](crate::Request::reference_reuse) has no effect: all steps are full, or
    /// skipped by the step cache.
    ReferenceReuseFull {
        /// Their number.
        steps: usize,
    },
    /// The area has no effect next to a width or a height: the other side follows from the image's ratio.
    MaxAreaIgnored {
        /// Pixels.
        max_area: u64,
    },
    /// [`Request::native_size`](crate::Request::native_size) has no effect: the result has the size that the model
    /// works at anyway.
    NativeSizeIgnored,
    /// [`Request::native_size`](crate::Request::native_size) has no effect with a mask, whose result has the size of the
    /// source.
    NativeSizeMasked,
    /// [`Request::register`](crate::Request::register) has no effect: the result is not in the place of an image.
    RegisterIgnored,
    /// A setting of a mask has no effect in the conventions of Diffusers.
    MaskSettingIgnored {
        /// Its name.
        setting: &'static str,
    },
    /// Width, height and area have no effect with a mask in the conventions of Diffusers, which take the preferred size.
    MaskedSize {
        /// The target's size.
        target: Size,
    },
    /// The placement of references has no effect: there are too few.
    ReferencesIgnored {
        /// The placement.
        references: References,
    },
    /// [`PipelineBuilder::quantize`](crate::PipelineBuilder::quantize) or its twin for T5 has no effect: the
    /// weights are quantised in their file, or left in it. Not given for the transformer if LoRAs are fused
    /// with it, because their layers are quantised in any case; a plan does not read which layers they have.
    QuantizeIgnored {
        /// The part: [`ModelPart::Transformer`] or [`ModelPart::T5`].
        part: ModelPart,
        /// The format.
        to: Quantize,
    },
    /// [`PipelineBuilder::fuse_loras`](crate::PipelineBuilder::fuse_loras) has no effect: the pipeline was
    /// loaded without LoRAs, or only with inactive ones.
    FuseLorasIgnored,
    /// [`Fp8Products::Always`](crate::Fp8Products::Always) has no effect: no weights of the transformer's blocks are in fp8.
    Fp8ProductsIgnored,
    /// The conventions do not keep the width and height that are set.
    SizeAdjusted {
        /// The size that is set; a side that is not set is the target's.
        asked: Size,
        /// The target's size.
        target: Size,
        /// The run's conventions.
        conformance: Conformance,
    },
    /// The edited image and the result have different grids.
    GridsDiffer {
        /// Grid of the first reference.
        reference: Grid,
        /// Grid of the target.
        target: Grid,
    },
    /// A reference is visibly stretched.
    Stretched {
        /// Its number, from 0.
        index: usize,
        /// The change of its aspect ratio in percent.
        percent: f64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NegativePromptIgnored { true_cfg } => write!(
                f,
                "the negative prompt has no effect with true_cfg {true_cfg}; set true_cfg above 1"
            ),
            Self::TrueCfgIgnored { true_cfg, .. } if *true_cfg <= 1.0 => {
                write!(f, "true_cfg {true_cfg} has no effect; set it above 1, or leave it at 1")
            }
            Self::TrueCfgIgnored { true_cfg, conformance } => write!(
                f,
                "true_cfg {true_cfg} has no effect without a negative prompt in the conventions of {conformance:?}; \
                 set negative_prompt, which may be empty"
            ),
            Self::PromptWeightsIgnored { conformance } => write!(
                f,
                "prompt_weights has no effect in the conventions of {conformance:?}, where parentheses are text; leave it \
                 out, or take those of Native"
            ),
            Self::CfgModeIgnored => write!(f, "cfg_mode has no effect without true_cfg; set true_cfg above 1"),
            Self::GuidanceIgnored { guidance } => write!(
                f,
                "guidance {guidance} has no effect, because this model embeds none; use true_cfg and a negative prompt"
            ),
            Self::GuidanceScheduleIgnored => write!(
                f,
                "guidance_schedule has no effect, because this model embeds no guidance; leave it out"
            ),
            Self::DefaultGuidanceIgnored { guidance } => write!(
                f,
                "guidance {guidance} of the model's defaults has no effect, because the model embeds none; remove it \
                 from kontext.json"
            ),
            Self::StepsIgnored { steps } => {
                write!(f, "steps {steps} has no effect next to sigmas; set one of them")
            }
            Self::ShiftIgnored { shift } => write!(
                f,
                "shift {shift} has no effect next to sigmas, which are taken as they are; set one of them"
            ),
            Self::LorasDisagree { setting } => write!(
                f,
                "the LoRAs ask for different values of {setting}, and that of the first one is taken; set {setting}"
            ),
            Self::SeedIgnored { seed } => write!(f, "seed {seed} has no effect next to noise; set one of them"),
            Self::StepCacheIgnored { steps } => write!(
                f,
                "the step cache has no effect: all of the {steps} steps are computed; leave it out, or set more steps or other parameters"
            ),
            Self::ReferenceReuseIgnored => {
                write!(
                    f,
                    "reference reuse has no effect without reference images; leave it out"
                )
            }
            Self::ReferenceReuseFull { steps } => write!(
                f,
                "reference reuse has no effect: all of the {steps} steps are full or skipped; leave it out, or set more steps \
                 or other parameters"
            ),
            Self::MaxAreaIgnored { max_area } => write!(
                f,
                "max_area {max_area} has no effect next to width or height; leave it out, or leave out both sides"
            ),
            Self::NativeSizeIgnored => write!(
                f,
                "native_size has no effect, because the result keeps the model's size anyway; leave it out"
            ),
            Self::NativeSizeMasked => write!(
                f,
                "native_size has no effect with a mask, whose result has the size of the source; leave it out"
            ),
            Self::RegisterIgnored => write!(
                f,
                "register has no effect without an edited image in whose place the result is: no stitched references, no \
                 size of another ratio, in the conventions of Native; leave it out"
            ),
            Self::MaskSettingIgnored { setting } => write!(
                f,
                "{setting} of the mask has no effect in the conventions of Diffusers; leave it out, or take those of Native"
            ),
            Self::MaskedSize { target } => write!(
                f,
                "width, height and max_area have no effect with a mask in the conventions of Diffusers, where the size is \
                 {target}; leave them out"
            ),
            Self::ReferencesIgnored { references } => write!(
                f,
                "references {references:?} has no effect with so few images; add one, or leave it out"
            ),
            Self::QuantizeIgnored { part, to } => write!(
                f,
                "quantize {to} has no effect on {part}: its weights are quantised in their file, or streamed from it; \
                 leave it out, or write a file in this format (`quantize`)"
            ),
            Self::FuseLorasIgnored => write!(
                f,
                "fuse_loras has no effect without active LoRAs; add one, or leave it out"
            ),
            Self::Fp8ProductsIgnored => write!(
                f,
                "fp8_products always has no effect without fp8 weights in the transformer's blocks; quantise them to fp8, \
                 or leave it out"
            ),
            Self::SizeAdjusted {
                asked,
                target,
                conformance: Conformance::Diffusers,
            } => write!(
                f,
                "the size {asked} becomes {target} in the conventions of Diffusers; set max_area to its pixels, and \
                 sides to multiples of 16"
            ),
            Self::SizeAdjusted {
                asked,
                target,
                conformance,
            } => write!(
                f,
                "the size {asked} becomes {target} in the conventions of {conformance:?}; set sides to multiples of 16"
            ),
            Self::GridsDiffer { reference, target } => write!(
                f,
                "the reference has {reference} and the target {target}: an edit in place may shift"
            ),
            Self::Stretched { index, percent } => {
                write!(f, "reference {} is stretched by {percent:.0} %", index + 1)
            }
        }
    }
}
