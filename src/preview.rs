//! Previews of a run: the options, as data of a request.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use kontext_core::{Error, Result};
use serde::{Deserialize, Serialize};

/// Previews of the first image of a run, as [`Event::Preview`](crate::Event::Preview).
///
/// A preview shows the image that a step predicts, without its noise. It changes no result.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use kontext::{Preview, PreviewMethod, Request};
/// let request = Request::generate("a lighthouse").preview(Preview::default().every(Duration::ZERO));
/// assert_eq!(request.preview.unwrap().method, PreviewMethod::Auto);
/// assert_eq!(Preview::default().every, Duration::from_millis(700));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[must_use]
#[non_exhaustive]
pub struct Preview {
    /// The way from latents to colours. Default: [`PreviewMethod::Auto`].
    pub method: PreviewMethod,
    /// Least time between two previews; the first step always has one, with zero each step. Default: 0.7 s.
    pub every: Duration,
}

impl Default for Preview {
    fn default() -> Self {
        Self {
            method: PreviewMethod::Auto,
            every: Duration::from_millis(700),
        }
    }
}

impl Preview {
    /// Sets [`Preview::method`].
    pub fn method(self, method: PreviewMethod) -> Self {
        Self { method, ..self }
    }

    /// Sets [`Preview::every`].
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }
}

/// The way from latents to the colours of a preview.
///
/// | name | method | size |
/// |---|---|---|
/// | `auto` | `tiny` if the model has one, else `fitted` | |
/// | `tiny` | a tiny autoencoder's decoder | that of the run's target, at most 512 pixels on a side |
/// | `fitted`, `comfyui`, `sdcpp` | a linear map, see [`PreviewFactors`] | an eighth of the target's |
///
/// # Example
/// ```
/// use kontext::{PreviewFactors, PreviewMethod};
/// assert_eq!("sdcpp".parse::<PreviewMethod>()?, PreviewMethod::Linear(PreviewFactors::StableDiffusionCpp));
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
#[non_exhaustive]
pub enum PreviewMethod {
    /// [`PreviewMethod::Tiny`] if the pipeline has a tiny autoencoder, else [`PreviewFactors::Fitted`]. `auto`.
    #[default]
    Auto,
    /// A tiny autoencoder of the model's latents, TAEF1 for those of FLUX.1: the one of
    /// [`PipelineBuilder::preview_decoder`](crate::PipelineBuilder::preview_decoder), else that in the folder
    /// `preview_decoder` of the model's. `tiny`.
    Tiny,
    /// A linear map: one product of a matrix of three rows.
    Linear(PreviewFactors),
}

/// The factors of a linear map from latents to colours. docs/previews.md has their errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PreviewFactors {
    /// ComfyUI's for the latents of FLUX.1. `comfyui`.
    ComfyUi,
    /// stable-diffusion.cpp's for the latents of FLUX.1. `sdcpp`.
    StableDiffusionCpp,
    /// This library's: for the autoencoder of FLUX.1 fitted to photos, for any other one to its encodings of a few
    /// generated images, once a pipeline, before the first run with previews. `fitted`.
    Fitted,
}

impl PreviewMethod {
    /// All methods.
    pub const ALL: [Self; 5] = [
        Self::Auto,
        Self::Tiny,
        Self::Linear(PreviewFactors::Fitted),
        Self::Linear(PreviewFactors::ComfyUi),
        Self::Linear(PreviewFactors::StableDiffusionCpp),
    ];

    /// Returns the name in requests and flags.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Tiny => "tiny",
            Self::Linear(PreviewFactors::Fitted) => "fitted",
            Self::Linear(PreviewFactors::ComfyUi) => "comfyui",
            Self::Linear(PreviewFactors::StableDiffusionCpp) => "sdcpp",
        }
    }
}

impl fmt::Display for PreviewMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl From<PreviewMethod> for &'static str {
    fn from(method: PreviewMethod) -> Self {
        method.name()
    }
}

impl FromStr for PreviewMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let named = Self::ALL.into_iter().find(|method| method.name() == text);
        named.ok_or_else(|| {
            let [others @ .., last] = Self::ALL.map(Self::name);
            Error::invalid("preview method", format!("{} or {last}", others.join(", ")), text)
        })
    }
}

impl TryFrom<String> for PreviewMethod {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;

    #[test]
    fn a_method_is_read_by_its_name_and_another_is_refused_with_all_names() {
        for method in PreviewMethod::ALL {
            assert_eq!(method.to_string().parse::<PreviewMethod>().unwrap(), method);
        }
        let error = "taesd".parse::<PreviewMethod>().unwrap_err().to_string();
        assert_eq!(
            error,
            "invalid preview method: expected auto, tiny, fitted, comfyui or sdcpp, got taesd"
        );
    }

    #[test]
    fn a_request_has_no_previews_unless_it_asks_for_them_and_keeps_them_as_text() {
        let plain = serde_json::to_string(&Request::default()).unwrap();
        assert!(
            Request::default().preview.is_none() && !plain.contains("preview"),
            "{plain}"
        );
        let preview = Preview::default()
            .method(PreviewMethod::Tiny)
            .every(Duration::from_millis(1500));
        let text = serde_json::to_string(&Request::default().preview(preview)).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap().preview, Some(preview));
        let short: Request = serde_json::from_str(r#"{"preview": {"method": "sdcpp"}}"#).unwrap();
        assert_eq!(
            short.preview,
            Some(Preview::default().method(PreviewMethod::Linear(PreviewFactors::StableDiffusionCpp)))
        );
    }
}
