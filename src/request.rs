//! The parameters of a run: plain data, tested and reused without any model.

mod setters;

use std::sync::Arc;

use image::RgbImage;
use kontext_dit::{ReferenceReuse, StepCache};
use kontext_sampler::{CfgMode, Conformance, GuidanceSchedule, References, Sampler};
use kontext_text::Prompt;
use ndarray::ArrayD;
use serde::{Deserialize, Serialize};

use crate::{IntoImage, LoraScale, Mask, Outpaint, Preview};

/// An edit or a generation. Every option has a default; the defaults of steps and guidance are those of the
/// [`Conformance`].
///
/// # Example
/// ```
/// use kontext::Request;
/// let request = Request::generate("a lighthouse at dusk").size(1392, 752).steps(28).guidance(2.5);
/// let again = request.clone().seed(8);
/// assert_eq!(again.prompt, request.prompt);
/// ```
///
/// With serde it is written without images, mask, latents and noise.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Request {
    /// Description of the result or of the change. May be empty.
    pub prompt: String,
    /// Text for T5 instead of `prompt`, which then only CLIP sees. Default: T5 sees `prompt`, too.
    ///
    /// T5's states are the transformer's text tokens and carry the detail; CLIP's pooled vector sets the tone
    /// of all of its layers. An empty text counts as one, except in the conventions of
    /// [`Conformance::Diffusers`], where it means the default.
    ///
    /// Source: huggingface/diffusers 0.38 `pipelines/flux/pipeline_flux_kontext.py` `encode_prompt`. The same
    /// as ComfyUI's `CLIPTextEncodeFlux` with `prompt` as `clip_l` and this as `t5xxl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// Description of what to avoid; used with `true_cfg` above 1.
    pub negative_prompt: Option<String>,
    /// Text for T5 instead of `negative_prompt`, as [`Request::prompt_2`]. Default: T5 sees
    /// `negative_prompt`, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt_2: Option<String>,
    /// Set if parentheses in the prompts weigh words for T5, by ComfyUI's rule ([`weighted_texts`](kontext_text::weighted_texts)):
    /// `(red)` by 1.1, `(red:1.3)` by 1.3, and `\(` is a parenthesis. Not in the conventions of Diffusers and Bfl, which
    /// have no weights. Default: false, parentheses are text.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub prompt_weights: bool,
    /// Reference images; empty for a generation. The first one is edited. Clones of a request share them.
    #[serde(skip)]
    pub images: Vec<Arc<RgbImage>>,
    /// Latents of the first reference image in packed form [1, tokens, 64], such as an earlier run's
    /// [`Output::latents`](crate::Output::latents). They replace the image's own, which then only determines
    /// the sizes. Values from -65504 to 65504. Default: the image is encoded.
    #[serde(skip)]
    pub image_latents: Option<ArrayD<f32>>,
    /// The part of the first image to repaint; the rest keeps its bytes. Default: all of it is redrawn.
    #[serde(skip)]
    pub mask: Option<Mask>,
    /// Continuation of the first image beyond its sides. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outpaint: Option<Outpaint>,
    /// Measurement of the result's shift and zoom against the first image, by what the edit left as it was, and their
    /// undoing ([`Registration`](crate::Registration)). Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub register: bool,
    /// Width of the result in pixels, or with a mask that of the part that the model sees. Default: see [`crate::Plan`].
    pub width: Option<u32>,
    /// Height of the result in pixels, or with a mask that of the part that the model sees. Default: see [`crate::Plan`].
    pub height: Option<u32>,
    /// Pixels of the result, if width and height are not given. Default: about one megapixel.
    pub max_area: Option<u64>,
    /// Keeps the size of the model's output, instead of mapping back to the input's. Default: false.
    pub native_size: bool,
    /// Sampling steps. Default: those of the LoRAs or the model's folder, else
    /// [`Conformance::default_steps`], 4 for a model without guidance.
    pub steps: Option<usize>,
    /// The noise levels themselves, decreasing within (0, 1]; replaces `steps`.
    pub sigmas: Option<Vec<f32>>,
    /// The rule of a step. Default: that of the LoRAs or the model, else [`Sampler::Euler`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<Sampler>,
    /// A fixed shift of the noise levels instead of the model's, from 0.01 to 100, as some weights for few steps need it;
    /// 1 leaves them even. Default: that of the LoRAs or the model.
    ///
    /// Of `sigmas` it moves only those in the conventions of [`Conformance::Diffusers`], as the model's shift does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// The guidance value that the model embeds. Default: that of the LoRAs or the model's folder, else
    /// [`Conformance::default_guidance`].
    ///
    /// Native and Bfl's 2.5 is that of BFL's own examples; diffusers' pipeline has 3.5, which is taken in its conventions
    /// only. Higher values follow the prompt more closely, with harder contrast.
    pub guidance: Option<f64>,
    /// A guidance value for each step, instead of `guidance`: as many as the run has steps, after `strength`. Each belongs
    /// to the noise level that its step begins at: the second evaluation of a step of [`Sampler::Heun`], at the next step's
    /// level, takes the next step's value.
    /// Default: one value for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_schedule: Option<GuidanceSchedule>,
    /// Scale of true classifier-free guidance; above 1 each step runs the model twice. Default: 1.
    pub true_cfg: f64,
    /// Arrangement of those two runs. Default: one after the other.
    ///
    /// A step cache that decides while running decides for each of the two, in one batch for both: its
    /// results differ.
    pub cfg_mode: CfgMode,
    /// Seed of the noise, also of that which the steps of [`Sampler::Consistency`] add. Default: drawn for
    /// each run and returned in [`crate::Output::seed`].
    pub seed: Option<u64>,
    /// Number of images, with seeds s, s + 1, … Default: 1.
    pub batch: usize,
    /// Amount of change to the edited image, in (0, 1]: below 1 the run starts from that image with noise
    /// instead of from pure noise. Default: 1.
    pub strength: f64,
    /// Placement of several references. Default: [`References::Offset`].
    pub references: References,
    /// LoRAs out of those that the pipeline has loaded, in order, instead of its active ones; an empty list
    /// for none. Default: `None`, the active ones ([`crate::Pipeline::loras`]).
    pub loras: Option<Vec<LoraScale>>,
    /// Conventions to follow. Default: this library's.
    pub conformance: Conformance,
    /// Steps that reuse what barely changes: faster, and another result. [`crate::Plan::work`] says which, if
    /// the mode decides before the run, and [`crate::Output::work`] in any case. It works in all conventions;
    /// the programs that they are of have it outside of their pipelines. Modes that decide while running
    /// decide for all images of a batch together, and with [`CfgMode::Batched`] for both prompts. Default:
    /// off.
    #[serde(skip_serializing_if = "StepCache::is_off")]
    pub step_cache: StepCache,
    /// Steps that compute fewer tokens, with the references' keys and values of an earlier step: faster, and
    /// another result. By its mode of edited tokens, which needs a first reference of the target's grid, no
    /// step cache and no true classifier-free guidance, they compute those only. All images of a batch share
    /// their edited tokens, so their results depend on each other. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_reuse: Option<ReferenceReuse>,
    /// The starting noise in packed form [batch, tokens, 64], values from -65504 to 65504; replaces the
    /// seeded one.
    #[serde(skip)]
    pub noise: Option<ArrayD<f32>>,
    /// Previews of the first image as [`Event::Preview`](crate::Event::Preview). Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preview: Option<Preview>,
}

/// A generation without a prompt.
impl Default for Request {
    fn default() -> Self {
        Self::generate("")
    }
}

impl Request {
    /// Creates a request for an image from a prompt, without references.
    #[must_use]
    pub fn generate(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            prompt_2: None,
            negative_prompt: None,
            negative_prompt_2: None,
            prompt_weights: false,
            images: Vec::new(),
            image_latents: None,
            mask: None,
            outpaint: None,
            register: false,
            width: None,
            height: None,
            max_area: None,
            native_size: false,
            steps: None,
            sigmas: None,
            sampler: None,
            shift: None,
            guidance: None,
            guidance_schedule: None,
            true_cfg: 1.0,
            cfg_mode: CfgMode::default(),
            seed: None,
            batch: 1,
            strength: 1.0,
            references: References::default(),
            loras: None,
            conformance: Conformance::default(),
            step_cache: StepCache::Off,
            reference_reuse: None,
            noise: None,
            preview: None,
        }
    }

    /// Creates a request to edit an image as the prompt describes. Open files with [`crate::open_image`],
    /// which handles their orientation and transparency.
    #[must_use]
    pub fn edit(image: impl IntoImage, prompt: impl Into<String>) -> Self {
        Self::generate(prompt).reference(image)
    }

    /// Returns the prompt of each encoder.
    pub(crate) fn positive(&self) -> Prompt<'_> {
        self.both(&self.prompt, self.prompt_2.as_deref())
    }

    /// Returns the negative prompt of each encoder, if the run uses one.
    pub(crate) fn negative(&self) -> Option<Prompt<'_>> {
        if self.true_cfg <= 1.0 {
            return None;
        }
        let first = match (&self.negative_prompt, self.conformance) {
            (Some(prompt), _) => prompt.as_str(),
            // diffusers ignores the scale if no negative prompt is given; a user who sets it wants it.
            (None, Conformance::Native) => "",
            (None, Conformance::Diffusers | Conformance::Bfl) => return None,
        };
        Some(self.both(first, self.negative_prompt_2.as_deref()))
    }

    /// Returns `true` if parentheses weigh words.
    pub(crate) fn weighs_words(&self) -> bool {
        self.prompt_weights && self.conformance == Conformance::Native
    }

    /// Returns a prompt of two texts. diffusers takes `prompt_2 or prompt`, and an empty text is false.
    fn both<'a>(&self, first: &'a str, second: Option<&'a str>) -> Prompt<'a> {
        let second = second.filter(|text| !text.is_empty() || self.conformance != Conformance::Diffusers);
        Prompt {
            clip: first,
            t5: second.unwrap_or(first),
        }
    }
}
