//! Editing in turns: each turn edits the result of the last.

mod distance;
mod files;
mod history;
mod index;
mod keep;
mod restore;
mod save;
mod turn;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use image::{GrayImage, RgbImage};
use kontext_core::{Error, Result, Tensor, array, buffer};
use kontext_sampler::{References, pack};
use ndarray::ArrayD;

use self::history::History;
pub use self::keep::{DifferenceMap, KeepUnchanged};
pub use self::turn::Turn;
use crate::output::Made;
use crate::pipeline::{Finished, Kept};
use crate::{Event, IntoImage, Pipeline, Plan, Request};

/// An image edited in turns, with its history.
///
/// The first turn's context is the encoded image. From then on the latents of one turn are the context of the
/// next, without a round trip through the autoencoder or 8-bit pixels. Repeated prompts and reference images
/// are not encoded again. The same requests with the same seeds give the same bytes, also after the session
/// was saved and restored.
///
/// A session shares its pipeline with others and is `Send`: a server may hold any number of them in a map.
///
/// Turns form a tree: [`Session::undo`] moves to the parent, an edit from there starts another branch, and
/// [`Session::branch`] moves anywhere.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
/// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
/// use std::sync::Arc;
/// use kontext::{image::RgbImage, Request};
/// let pipe = Arc::new(pipe);
/// let mut session = pipe.session(RgbImage::new(64, 64));
/// session.defaults = Request::default().max_area(64 * 64).steps(1);
/// session.edit("make it winter")?;
/// session.edit("give her a green scarf")?;
/// assert!(session.undo());
/// let red = session.edit("give her a red scarf")?;
/// assert_eq!((red.id, red.parent), (3, Some(1)));
/// let prompts: Vec<&str> = session.history().iter().map(|turn| turn.prompt()).collect();
/// assert_eq!(prompts, ["", "make it winter", "give her a red scarf"]);
/// # Ok::<(), kontext::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Session {
    /// Restores the original pixels that a turn did not change. Default: `None`, a turn's image is the run's.
    pub keep_unchanged: Option<KeepUnchanged>,
    /// Encodes a turn's image again as the context of the next one, instead of reusing its latents. Default:
    /// false.
    pub reencode: bool,
    /// Request of [`Session::edit`], without its prompts. Default: [`Request::default`].
    pub defaults: Request,
    /// Names the session in folders that it is saved to.
    id: String,
    pipe: Arc<Pipeline>,
    history: History,
    kept: Kept,
}

impl Pipeline {
    /// Starts a session from an image. The session shares the pipeline.
    #[must_use]
    pub fn session(self: &Arc<Self>, image: impl IntoImage) -> Session {
        Session::new(Arc::clone(self), History::new(owned(image)))
    }

    /// Restores a session written by [`Session::save`]. With the same model, device and dtype, later turns
    /// have the same bytes as in the original session.
    ///
    /// The folder need not be trusted: names that lead out of it, files with another content than was saved,
    /// and numbers that a request could not have are refused.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`] and [`Error::Checkpoint`] if a file is missing, damaged, or of a later
    /// format, or if the latents belong to another kind of model; [`Error::Allocation`] if the images take
    /// more than the free memory.
    pub fn restore_session(self: &Arc<Self>, folder: impl AsRef<Path>) -> Result<Session> {
        restore::restore(self, folder.as_ref())
    }
}

impl Session {
    fn new(pipe: Arc<Pipeline>, history: History) -> Self {
        let (keep_unchanged, defaults, kept) = (None, Request::default(), Kept::latest());
        Self {
            keep_unchanged,
            reencode: false,
            defaults,
            id: format!("{:032x}", rand::random::<u128>()),
            pipe,
            history,
            kept,
        }
    }

    /// Edits the current image. Both encoders see the prompt. The result becomes the current one.
    ///
    /// # Errors
    /// Those of [`Session::run`].
    pub fn edit(&mut self, prompt: impl Into<String>) -> Result<&Turn> {
        let request = self.request(prompt);
        self.run(&request)
    }

    /// Returns the request that [`Session::edit`] runs: [`Session::defaults`] with this prompt for both
    /// encoders. For [`Session::run_with`], which reports progress.
    #[must_use]
    pub fn request(&self, prompt: impl Into<String>) -> Request {
        let mut request = self.defaults.clone().prompt(prompt);
        request.prompt_2 = None;
        request
    }

    /// Edits the current image with a request. The request's own images are further references.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request of several images, one with [`Request::image_latents`], or
    /// one whose result does not cover the same area, as [`Session::keep_unchanged`] requires; those of
    /// [`Pipeline::run`]. The session is then unchanged.
    pub fn run(&mut self, request: &Request) -> Result<&Turn> {
        self.run_with(request, |_| ControlFlow::Continue(()))
    }

    /// Runs as [`Session::run`] does, reports events to `observe` and stops on its request.
    ///
    /// # Errors
    /// Those of [`Session::run`], and [`Error::Cancelled`] if `observe` returns `Break`.
    pub fn run_with(
        &mut self,
        request: &Request,
        mut observe: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<&Turn> {
        // 1. The edited image, before the request's own images.
        let source = self.history.current();
        let mut whole = request.clone();
        whole.images.insert(0, Arc::new(buffer::copied_image(&source.image)?));
        let plan = self.pipe.plan(&whole)?;
        self.check(request, source, &plan)?;
        whole.image_latents = self.handed_over(source, request, &plan);
        // 2. A normal run, with the caches of earlier turns.
        let Finished { output, first } = self.pipe.run_keeping(&whole, &mut self.kept, &mut observe)?;
        // 3. Pixels that the edit did not change are restored.
        let (image, latents, changed) = match (&self.keep_unchanged, first) {
            (Some(keep), Some(first)) => self.put_back(keep, source, &first, output.image, &output.latents, &plan)?,
            _ => (output.image, output.latents, None),
        };
        // 4. The turn.
        let made = Made {
            seed: output.seed,
            steps: plan.schedule.steps(),
            guidance: output.guidance,
            model_size: plan.target.size(),
        };
        let request = Request {
            seed: Some(output.seed),
            ..request.clone()
        };
        Ok(self.history.add(|id, parent| Turn {
            parent: Some(parent),
            changed,
            latents: Some(latents),
            warnings: plan.warnings,
            unseen: output.unseen,
            edit: Some((request, made)),
            ..Turn::given(id, image)
        }))
    }

    /// Continues with another image instead of the current one, such as one retouched elsewhere. It becomes a
    /// turn without a prompt, and the next turn encodes it.
    pub fn replace(&mut self, image: impl IntoImage) -> &Turn {
        self.history.add(|id, parent| Turn {
            parent: Some(parent),
            ..Turn::given(id, owned(image))
        })
    }

    /// Returns the pipeline, which other sessions and threads may share.
    #[must_use]
    pub fn pipeline(&self) -> &Arc<Pipeline> {
        &self.pipe
    }

    /// Returns the turn that the next edit starts from.
    #[must_use]
    pub fn current(&self) -> &Turn {
        self.history.current()
    }

    /// Moves to the parent of the current turn; returns `false` at the first turn.
    pub fn undo(&mut self) -> bool {
        self.history.undo()
    }

    /// Moves to the turn last left by [`Session::undo`] or [`Session::branch`]; returns `false` if there is
    /// none.
    pub fn redo(&mut self) -> bool {
        self.history.redo()
    }

    /// Moves to any turn; the next edit branches off there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an unknown turn.
    pub fn branch(&mut self, id: usize) -> Result<&Turn> {
        self.history.branch(id)
    }

    /// Returns all turns, in order of creation; the first one is the session's initial image.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        self.history.turns()
    }

    /// Returns the turns from the first to the current one.
    #[must_use]
    pub fn history(&self) -> Vec<&Turn> {
        self.history.path()
    }

    /// Writes the session into a folder, which is created if necessary: `session.json`, a PNG for each image
    /// and a safetensors file for each turn's latents, in the run's dtype.
    ///
    /// Files that are there with their content are not written again, so that another save repairs a damaged
    /// folder, and `session.json` is written last and atomically: an interrupted save, or a power cut, leaves
    /// the folder's previous session intact.
    ///
    /// A folder that holds another session, or turns of this one that were added elsewhere, is refused,
    /// because they could not be restored any more. Remove its `session.json` first if they are not needed.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for such a folder, and for settings that no request may have, before
    /// anything is written; [`Error::Io`] if the folder cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        save::save(self, folder.as_ref())
    }

    /// Checks the request before any work.
    fn check(&self, request: &Request, source: &Turn, plan: &Plan) -> Result<()> {
        if request.batch != 1 {
            return Err(Error::invalid("batch", "1 image in a turn of a session", request.batch));
        }
        if request.image_latents.is_some() {
            let expected = "none in a session, which hands its own over; use `replace` for another image";
            return Err(Error::invalid("image_latents", expected, "some"));
        }
        let Some(keep) = &self.keep_unchanged else {
            return Ok(());
        };
        keep.check(&source.image)?;
        let aligned = plan.references.first().is_some_and(|first| {
            first.grid == plan.target && first.input == plan.output && source.image.width() == first.input.width
        });
        if aligned {
            return Ok(());
        }
        let expected = "a result in the place of the image: no width, height, native size or stitched references, in \
                        the conventions of Kontext";
        Err(Error::invalid(
            "request under keep_unchanged",
            expected,
            format!("a result of {}", plan.output),
        ))
    }

    /// Returns the source's latents, if the run can continue from them.
    fn handed_over(&self, source: &Turn, request: &Request, plan: &Plan) -> Option<ArrayD<f32>> {
        let joined = request.references == References::Stitch && !request.images.is_empty();
        let fits = plan.references.first().is_some_and(|first| source.is_of(first.fitted));
        source.latents.clone().filter(|_| fits && !joined && !self.reencode)
    }

    /// Restores the source in a turn's unchanged regions, and returns its image, latents and map.
    ///
    /// The difference is computed between the decoded latents of both, so that losses of the autoencoder do
    /// not count as changes. Latents follow their pixels: in unchanged regions they remain those of the first
    /// image, turn after turn.
    fn put_back(
        &self,
        keep: &KeepUnchanged,
        source: &Turn,
        first: &Tensor,
        image: RgbImage,
        latents: &ArrayD<f32>,
        plan: &Plan,
    ) -> Result<(RgbImage, ArrayD<f32>, Option<GrayImage>)> {
        let map = keep.map(&image, plan, || self.pipe.decode(first, plan))?;
        let image = keep::mix(&source.image, image, &map);
        let result = array::from_array(&latents.view())?;
        let mixed = keep::mix_latents(&pack(first)?, &result, &map, plan.target)?;
        Ok((image, array::to_array(&mixed)?, Some(map)))
    }
}

/// Returns the image, copied if it is shared.
fn owned(image: impl IntoImage) -> RgbImage {
    Arc::unwrap_or_clone(image.into_image())
}
