//! Setting a request's options, one after the other.

use kontext_dit::{ReferenceReuse, StepCache};
use kontext_sampler::{CfgMode, Conformance, GuidanceSchedule, References, Sampler};
use ndarray::ArrayD;

use super::Request;
use crate::{IntoImage, LoraScale, Mask, Outpaint, Preview};

impl Request {
    /// Sets [`Request::prompt`].
    #[must_use]
    pub fn prompt(self, prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            ..self
        }
    }

    /// Sets [`Request::prompt_2`].
    ///
    /// # Example
    /// ```
    /// use kontext::Request;
    /// let request = Request::generate("a lighthouse").prompt_2("a lighthouse at dusk, fog below");
    /// assert_eq!(request.prompt, "a lighthouse");
    /// ```
    #[must_use]
    pub fn prompt_2(self, prompt: impl Into<String>) -> Self {
        Self {
            prompt_2: Some(prompt.into()),
            ..self
        }
    }

    /// Adds a reference image.
    #[must_use]
    pub fn reference(mut self, image: impl IntoImage) -> Self {
        self.images.push(image.into_image());
        self
    }

    /// Sets [`Request::image_latents`].
    ///
    /// # Example
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
    /// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
    /// use kontext::{image::RgbImage, Request};
    /// let request = |image: &RgbImage, prompt| Request::edit(image, prompt).max_area(64 * 64).steps(1);
    /// let once = pipe.run(&request(&RgbImage::new(64, 64), "make it winter"))?;
    /// // Continues from the latents of the first run, not from its 8-bit image.
    /// let twice = pipe.run(&request(&once.image, "make it night").image_latents(once.latents))?;
    /// assert_eq!(twice.image.dimensions(), (64, 64));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    #[must_use]
    pub fn image_latents(self, latents: ArrayD<f32>) -> Self {
        Self {
            image_latents: Some(latents),
            ..self
        }
    }

    /// Sets [`Request::mask`]: a [`Mask`], or grey levels of the first image's size, in which white is repainted.
    ///
    /// # Example
    /// ```
    /// # let folder = tempfile::tempdir().unwrap();
    /// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
    /// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
    /// use kontext::image::{GrayImage, Luma, RgbImage};
    /// use kontext::Request;
    /// let photo = RgbImage::new(64, 64);
    /// let right_half = GrayImage::from_fn(64, 64, |x, _| Luma([if x < 32 { 0 } else { 255 }]));
    /// let request = Request::edit(&photo, "a door").mask(right_half).max_area(64 * 64).steps(1);
    /// let edited = pipe.run(&request)?.image;
    /// // The feather is 8 pixels wide.
    /// assert!((0..24).all(|x| edited.get_pixel(x, 9) == photo.get_pixel(x, 9)));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    #[must_use]
    pub fn mask(self, mask: impl Into<Mask>) -> Self {
        Self {
            mask: Some(mask.into()),
            ..self
        }
    }

    /// Sets [`Request::outpaint`].
    #[must_use]
    pub fn outpaint(self, outpaint: Outpaint) -> Self {
        Self {
            outpaint: Some(outpaint),
            ..self
        }
    }

    /// Sets [`Request::register`].
    #[must_use]
    pub fn register(self) -> Self {
        Self { register: true, ..self }
    }

    /// Sets [`Request::negative_prompt`].
    #[must_use]
    pub fn negative_prompt(self, prompt: impl Into<String>) -> Self {
        Self {
            negative_prompt: Some(prompt.into()),
            ..self
        }
    }

    /// Sets [`Request::negative_prompt_2`].
    #[must_use]
    pub fn negative_prompt_2(self, prompt: impl Into<String>) -> Self {
        Self {
            negative_prompt_2: Some(prompt.into()),
            ..self
        }
    }

    /// Sets [`Request::prompt_weights`].
    ///
    /// # Example
    /// ```
    /// use kontext::Request;
    /// let request = Request::generate("a (red:1.3) hat").prompt_weights(true);
    /// assert!(request.prompt_weights);
    /// ```
    #[must_use]
    pub fn prompt_weights(self, weights: bool) -> Self {
        Self {
            prompt_weights: weights,
            ..self
        }
    }

    /// Sets [`Request::width`] and [`Request::height`].
    #[must_use]
    pub fn size(self, width: u32, height: u32) -> Self {
        Self {
            width: Some(width),
            height: Some(height),
            ..self
        }
    }

    /// Sets [`Request::max_area`].
    #[must_use]
    pub fn max_area(self, pixels: u64) -> Self {
        Self {
            max_area: Some(pixels),
            ..self
        }
    }

    /// Sets [`Request::native_size`].
    #[must_use]
    pub fn native_size(self) -> Self {
        Self {
            native_size: true,
            ..self
        }
    }

    /// Sets [`Request::steps`].
    #[must_use]
    pub fn steps(self, steps: usize) -> Self {
        Self {
            steps: Some(steps),
            ..self
        }
    }

    /// Sets [`Request::sigmas`].
    #[must_use]
    pub fn sigmas(self, sigmas: impl Into<Vec<f32>>) -> Self {
        Self {
            sigmas: Some(sigmas.into()),
            ..self
        }
    }

    /// Sets [`Request::sampler`].
    ///
    /// # Example
    /// ```
    /// use kontext::{Request, Sampler};
    /// let request = Request::generate("a lighthouse").steps(4).sampler(Sampler::Consistency).shift(2.0);
    /// assert_eq!(request.sampler, Some(Sampler::Consistency));
    /// ```
    #[must_use]
    pub fn sampler(self, sampler: Sampler) -> Self {
        Self {
            sampler: Some(sampler),
            ..self
        }
    }

    /// Sets [`Request::shift`].
    #[must_use]
    pub fn shift(self, shift: f64) -> Self {
        Self {
            shift: Some(shift),
            ..self
        }
    }

    /// Sets [`Request::guidance`].
    #[must_use]
    pub fn guidance(self, guidance: f64) -> Self {
        Self {
            guidance: Some(guidance),
            ..self
        }
    }

    /// Sets [`Request::guidance_schedule`].
    ///
    /// # Example
    /// ```
    /// use kontext::Request;
    /// let request = Request::generate("a lighthouse").steps(3).guidance_schedule([4.0, 2.5, 2.5]);
    /// assert_eq!(request.guidance_schedule, Some("4,2.5*2".parse()?));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    #[must_use]
    pub fn guidance_schedule(self, values: impl Into<GuidanceSchedule>) -> Self {
        Self {
            guidance_schedule: Some(values.into()),
            ..self
        }
    }

    /// Sets [`Request::true_cfg`].
    #[must_use]
    pub fn true_cfg(self, scale: f64) -> Self {
        Self {
            true_cfg: scale,
            ..self
        }
    }

    /// Sets [`Request::cfg_mode`].
    #[must_use]
    pub fn cfg_mode(self, mode: CfgMode) -> Self {
        Self { cfg_mode: mode, ..self }
    }

    /// Sets [`Request::seed`].
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self {
            seed: Some(seed),
            ..self
        }
    }

    /// Sets [`Request::batch`].
    #[must_use]
    pub fn batch(self, images: usize) -> Self {
        Self { batch: images, ..self }
    }

    /// Sets [`Request::strength`].
    #[must_use]
    pub fn strength(self, strength: f64) -> Self {
        Self { strength, ..self }
    }

    /// Sets [`Request::references`].
    #[must_use]
    pub fn references(self, references: References) -> Self {
        Self { references, ..self }
    }

    /// Adds a LoRA of the pipeline to [`Request::loras`], by its name and at a scale (1 as trained). Requests
    /// with different LoRAs can run on one pipeline at the same time.
    ///
    /// # Example
    /// ```no_run
    /// use kontext::{LoraUse, Pipeline, Request};
    /// let pipe = Pipeline::load("FLUX.1-Kontext-dev")?;
    /// pipe.add_lora(LoraUse::new("watercolour.safetensors").inactive())?;
    /// let request = Request::generate("a lighthouse").seed(1);
    /// let plain = pipe.run(&request)?;
    /// let painted = pipe.run(&request.clone().lora("watercolour", 0.8))?;
    /// # Ok::<(), kontext::Error>(())
    /// ```
    #[must_use]
    pub fn lora(mut self, name: impl Into<String>, scale: f64) -> Self {
        let name = name.into();
        self.loras.get_or_insert_default().push(LoraScale { name, scale });
        self
    }

    /// Sets [`Request::loras`] to none, whatever the pipeline's active ones are.
    #[must_use]
    pub fn without_loras(self) -> Self {
        Self {
            loras: Some(Vec::new()),
            ..self
        }
    }

    /// Sets [`Request::conformance`].
    #[must_use]
    pub fn conform(self, conformance: Conformance) -> Self {
        Self { conformance, ..self }
    }

    /// Sets [`Request::step_cache`].
    ///
    /// # Example
    /// ```
    /// use kontext::{MagCache, Request, StepCache};
    /// let fast = Request::generate("a lighthouse").step_cache(StepCache::MagCache(MagCache::default()));
    /// assert_eq!(fast.step_cache.to_string(), "magcache");
    /// ```
    #[must_use]
    pub fn step_cache(self, cache: StepCache) -> Self {
        Self {
            step_cache: cache,
            ..self
        }
    }

    /// Sets [`Request::reference_reuse`].
    ///
    /// # Example
    /// ```
    /// use kontext::{MagCache, ReferenceReuse, Request, StepCache};
    /// let fast = Request::default()
    ///     .step_cache(StepCache::MagCache(MagCache::default()))
    ///     .reference_reuse(ReferenceReuse::default());
    /// assert_eq!(fast.reference_reuse, Some("references".parse()?));
    /// # Ok::<(), kontext::Error>(())
    /// ```
    #[must_use]
    pub fn reference_reuse(self, reuse: ReferenceReuse) -> Self {
        Self {
            reference_reuse: Some(reuse),
            ..self
        }
    }

    /// Sets [`Request::noise`].
    #[must_use]
    pub fn noise(self, noise: ArrayD<f32>) -> Self {
        Self {
            noise: Some(noise),
            ..self
        }
    }

    /// Sets [`Request::preview`].
    #[must_use]
    pub fn preview(self, preview: Preview) -> Self {
        Self {
            preview: Some(preview),
            ..self
        }
    }
}
