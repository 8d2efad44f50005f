//! The maps and decoders of previews: which a run takes, and where they come from.

mod painter;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kontext_core::{Device, Error, Kind, Result, lock};
use kontext_vae::{Autoencoder, LatentMap, VaeConfig};

use self::painter::Brush;
pub(super) use self::painter::Painter;
use super::Pipeline;
use super::computing::Computing;
use crate::frozen::Frozen;
use crate::placement::Lease;
use crate::preview::{PreviewFactors, PreviewMethod};
use crate::{Plan, Request};

/// Folder of a tiny autoencoder in a model's folder.
const FOLDER: &str = "preview_decoder";

/// The decoder and the map of a pipeline's previews, each made at its first use.
#[derive(Debug, Default)]
pub(super) struct Previews {
    /// The builder's path of a tiny autoencoder.
    given: Option<PathBuf>,
    decoder: Mutex<Option<Arc<Frozen<Autoencoder>>>>,
    fitted: Mutex<Option<LatentMap>>,
}

/// The way from latents to colours, chosen.
#[derive(Debug, Clone)]
pub(super) enum Colouring {
    Decoder(Arc<Frozen<Autoencoder>>),
    Map(LatentMap),
    /// The map for the model's autoencoder, looked up or fitted when that is leased.
    Fitted,
}

impl Previews {
    pub(super) fn new(given: Option<PathBuf>) -> Self {
        Self {
            given,
            ..Self::default()
        }
    }

    /// Drops the decoder, which is read again at its next use.
    pub(super) fn unload(&self) {
        *lock(&self.decoder) = None;
    }
}

impl Pipeline {
    /// Checks the tiny autoencoder that the builder names.
    pub(crate) fn check_preview_decoder(&self) -> Result<()> {
        match self.previews.given {
            Some(_) => self.preview_decoder().map(drop),
            None => Ok(()),
        }
    }

    /// Chooses the colouring of a request's previews, before any work.
    pub(super) fn colouring(&self, request: &Request) -> Result<Option<Colouring>> {
        let Some(preview) = request.preview else {
            return Ok(None);
        };
        let published = |map: LatentMap| match self.latent_channels() {
            channels if channels == map.channels() => Ok(Colouring::Map(map)),
            channels => {
                let expected =
                    format!("fitted or tiny for latents of {channels} channels, which are not those of FLUX.1");
                Err(Error::invalid("preview method", expected, preview.method))
            }
        };
        let chosen = match preview.method {
            PreviewMethod::Auto => match self.preview_decoder()? {
                Some(decoder) => Colouring::Decoder(decoder),
                None => Colouring::Fitted,
            },
            PreviewMethod::Tiny => match self.preview_decoder()? {
                Some(decoder) => Colouring::Decoder(decoder),
                None => {
                    let expected = "a tiny autoencoder of the model's latents: in the folder `preview_decoder` of the \
                                    model's, or named to the builder (`preview_decoder`); or another method";
                    return Err(Error::invalid("preview method", expected, "tiny, and none"));
                }
            },
            PreviewMethod::Linear(PreviewFactors::Fitted) => Colouring::Fitted,
            PreviewMethod::Linear(PreviewFactors::ComfyUi) => published(LatentMap::comfy_ui())?,
            PreviewMethod::Linear(PreviewFactors::StableDiffusionCpp) => published(LatentMap::stable_diffusion_cpp())?,
        };
        Ok(Some(chosen))
    }

    /// Creates the painter of a run's previews, with the map for this model's autoencoder where that is chosen.
    pub(super) fn painter<'a>(
        &'a self,
        colouring: Colouring,
        every: Duration,
        computing: &Computing,
        vae: &mut Option<Lease<'a, Autoencoder>>,
        plan: &Plan,
    ) -> Result<Painter> {
        let (device, dtype) = (self.device, self.precision.dtype);
        let brush = match colouring {
            Colouring::Decoder(decoder) if device == Device::Cpu => Brush::Decoder(decoder, Kind::Float),
            Colouring::Decoder(decoder) => Brush::Decoder(decoder, dtype),
            Colouring::Map(map) => Brush::Map(map.on(device)?),
            Colouring::Fitted => Brush::Map(self.fitted_map(computing, vae, plan)?.on(device)?),
        };
        Ok(Painter::new(brush, every, plan.target))
    }

    /// Returns the map for this model's autoencoder, fitted at its first use.
    fn fitted_map<'a>(
        &'a self,
        computing: &Computing,
        vae: &mut Option<Lease<'a, Autoencoder>>,
        plan: &Plan,
    ) -> Result<LatentMap> {
        if let Some(map) = lock(&self.previews.fitted).clone() {
            return Ok(map);
        }
        let vae = Lease::begin(vae, || self.parts.vae.lease())?;
        let map = match vae {
            Autoencoder::Kl(kl) if *kl.config() == VaeConfig::flux() => LatentMap::flux(),
            vae => computing.image(|| LatentMap::of(vae, plan.compute.autoencoder, self.device))?,
        };
        Ok(lock(&self.previews.fitted).get_or_insert(map).clone())
    }

    /// Returns the tiny autoencoder of previews, if there is one.
    fn preview_decoder(&self) -> Result<Option<Arc<Frozen<Autoencoder>>>> {
        let folder = self.checkpoint().map(|checkpoint| checkpoint.folder.join(FOLDER));
        let Some(path) = self.previews.given.clone().or(folder.filter(|folder| folder.is_dir())) else {
            return Ok(None);
        };
        let mut decoder = lock(&self.previews.decoder);
        if let Some(decoder) = &*decoder {
            return Ok(Some(Arc::clone(decoder)));
        }
        // In the dtype of a run, which is f32 on a CPU.
        let kind = match self.device {
            Device::Cpu => Kind::Float,
            _ => self.precision.dtype,
        };
        let opened = Autoencoder::open(&path, kind, self.device)?;
        let (channels, got) = (self.latent_channels(), opened.latent_channels());
        if !matches!(opened, Autoencoder::Tiny(_)) || got != channels {
            let expected = format!("a tiny autoencoder of {channels} latent channels, as this model has");
            let kind = if matches!(opened, Autoencoder::Tiny(_)) {
                "a tiny"
            } else {
                "a full"
            };
            return Err(Error::invalid(
                "preview decoder",
                expected,
                format!("{kind} one of {got} in {}", path.display()),
            ));
        }
        Ok(Some(Arc::clone(decoder.insert(Arc::new(Frozen::new(opened))))))
    }

    fn latent_channels(&self) -> i64 {
        self.packed_channels() / 4
    }
}
