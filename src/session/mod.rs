//! Editing in turns: each result is what the next turn edits.

mod distance;
mod folder;
mod history;
mod keep;
mod turn;

use std::ops::ControlFlow;
use std::path::Path;

use image::{GrayImage, RgbImage};
use kontext_core::{Error, Result, Tensor, array};
use kontext_sampler::{References, pack};
use ndarray::ArrayD;

use self::history::History;
pub use self::keep::{DifferenceMap, Keep};
pub use self::turn::Turn;
use crate::output::Made;
use crate::pipeline::{Finished, Kept};
use crate::{Event, Pipeline, Plan, Request};

/// A picture that is edited in turns, with all that it has been.
///
/// The first turn's context is the encoded picture. From then on the latents of one turn are the context of the next:
/// between turns nothing goes through the autoencoder, nor through 8 bits. Prompts and reference pictures that come
/// again are not encoded again. The same requests with the same seeds give the same bytes, also after the session was
/// saved and restored.
///
/// Turns form a tree: [`Session::undo`] goes to what was edited, an edit from there begins another branch, and
/// [`Session::branch`] goes anywhere.
///
/// # Example
/// ```
/// # let folder = tempfile::tempdir().unwrap();
/// # kontext::random_model(folder.path(), 7, kontext::Layout::Diffusers)?;
/// # let pipe = kontext::Pipeline::builder().device(kontext::Device::Cpu).load(folder.path())?;
/// use kontext::{image::RgbImage, Request};
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
pub struct Session<'a> {
    /// Puts the original pixels back where a turn changed nothing. Default: none, a turn's picture is the run's.
    pub keep_unchanged: Option<Keep>,
    /// Encodes a turn's picture anew as the context of the next one, in place of handing its latents over. Default:
    /// false.
    pub reencode: bool,
    /// What [`Session::edit`] asks for beside the prompt. Default: [`Request::default`].
    pub defaults: Request,
    pipe: &'a Pipeline,
    history: History,
    kept: Kept,
}

impl Pipeline {
    /// A session that begins with a picture.
    #[must_use]
    pub fn session(&self, picture: RgbImage) -> Session<'_> {
        Session::new(self, History::new(picture))
    }

    /// A session that [`Session::save`] wrote, as it was. With the model, device and dtype that it was saved with, it
    /// goes on with the same bytes.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Image`] and [`Error::Checkpoint`] where a file is missing, damaged, or of a later format,
    /// or where the latents are those of another kind of model.
    pub fn restore_session(&self, folder: impl AsRef<Path>) -> Result<Session<'_>> {
        folder::restore(self, folder.as_ref())
    }
}

impl<'a> Session<'a> {
    fn new(pipe: &'a Pipeline, history: History) -> Self {
        let (keep_unchanged, defaults, kept) = (None, Request::default(), Kept::latest());
        Self {
            keep_unchanged,
            reencode: false,
            defaults,
            pipe,
            history,
            kept,
        }
    }

    /// Edits the current picture. The result is the current one then.
    ///
    /// # Errors
    /// Those of [`Session::run`].
    pub fn edit(&mut self, prompt: impl Into<String>) -> Result<&Turn> {
        self.run(&self.defaults.clone().prompt(prompt))
    }

    /// Edits the current picture as a request says. The request's own pictures are further references.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a request of several pictures, one with [`Request::image_latents`], or one whose
    /// result has not the place that [`Session::keep_unchanged`] needs; those of [`Pipeline::run`]. The session is then
    /// as it was.
    pub fn run(&mut self, request: &Request) -> Result<&Turn> {
        self.run_with(request, |_| ControlFlow::Continue(()))
    }

    /// As [`Session::run`], telling what happens and stopping when told to.
    ///
    /// # Errors
    /// Those of [`Session::run`], and [`Error::Cancelled`] where `observe` breaks off.
    pub fn run_with(
        &mut self,
        request: &Request,
        mut observe: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<&Turn> {
        // 1. What is edited, before the request's own pictures.
        let source = self.history.current();
        let mut whole = request.clone();
        whole.images.insert(0, source.picture.clone());
        let plan = self.pipe.plan(&whole)?;
        self.check(request, source, &plan)?;
        whole.image_latents = self.handed_over(source, request, &plan);
        // 2. A run as any other, that finds what was encoded before.
        let Finished { output, first } = self.pipe.run_keeping(&whole, &mut self.kept, &mut observe)?;
        // 3. What the edit left alone is put back.
        let (picture, latents, changed) = match (&self.keep_unchanged, first) {
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
            id,
            parent: Some(parent),
            picture,
            changed,
            latents: Some(latents),
            edit: Some((request, made)),
        }))
    }

    /// Goes on with another picture in place of the current one: one that was retouched elsewhere, say. It is a turn
    /// without a prompt, and the next one encodes it.
    pub fn replace(&mut self, picture: RgbImage) -> &Turn {
        self.history.add(|id, parent| Turn {
            parent: Some(parent),
            ..Turn::given(id, picture)
        })
    }

    /// The turn that the next edit begins from.
    #[must_use]
    pub fn current(&self) -> &Turn {
        self.history.current()
    }

    /// Goes to what the current turn edited; false at the beginning.
    pub fn undo(&mut self) -> bool {
        self.history.undo()
    }

    /// Goes to the turn that was left last by [`Session::undo`] or [`Session::branch`]; false where there is none.
    pub fn redo(&mut self) -> bool {
        self.history.redo()
    }

    /// Goes to any turn; the next edit branches off there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a turn that there is not.
    pub fn branch(&mut self, id: usize) -> Result<&Turn> {
        self.history.branch(id)
    }

    /// All turns, in the order of their making; the first one is the picture that the session began with.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        self.history.turns()
    }

    /// The turns from the first to the current one.
    #[must_use]
    pub fn history(&self) -> Vec<&Turn> {
        self.history.path()
    }

    /// Writes the session into a folder, which is made if need be: `session.json`, a PNG for each picture and a
    /// safetensors file for each turn's latents, in the dtype of the run. Files that are there already are not written
    /// again, and `session.json` comes last and whole: a folder that could not be finished holds the session that it
    /// held before. Files of another session that it held stay.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be written.
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        folder::save(self, folder.as_ref())
    }

    /// What can be told before any work.
    fn check(&self, request: &Request, source: &Turn, plan: &Plan) -> Result<()> {
        if request.batch != 1 {
            return Err(Error::invalid(
                "batch",
                "1 picture in a turn of a session",
                request.batch,
            ));
        }
        if request.image_latents.is_some() {
            let expected = "none in a session, which hands its own over; use `replace` for another picture";
            return Err(Error::invalid("image_latents", expected, "some"));
        }
        let Some(keep) = &self.keep_unchanged else {
            return Ok(());
        };
        keep.check(&source.picture)?;
        let aligned = plan.references.first().is_some_and(|first| {
            first.grid == plan.target && first.input == plan.output && source.picture.width() == first.input.width
        });
        if aligned {
            return Ok(());
        }
        let expected = "a result in the place of the picture: no width, height, native size or stitched references, in \
                        the conventions of Kontext";
        Err(Error::invalid(
            "request under keep_unchanged",
            expected,
            format!("a result of {}", plan.output),
        ))
    }

    /// The source's latents, where the run is to go on with them.
    fn handed_over(&self, source: &Turn, request: &Request, plan: &Plan) -> Option<ArrayD<f32>> {
        let joined = request.references == References::Stitch && !request.images.is_empty();
        let fits = plan.references.first().is_some_and(|first| source.is_of(first.fitted));
        source.latents.clone().filter(|_| fits && !joined && !self.reencode)
    }

    /// Picture, latents and map of a turn whose source is put back where nothing was changed.
    ///
    /// The difference is that between the decoded latents of both, so that what the autoencoder cannot show is no
    /// change. Latents go with their pixels: where nothing was changed they stay those of the first picture,
    /// turn after turn.
    fn put_back(
        &self,
        keep: &Keep,
        source: &Turn,
        first: &Tensor,
        image: RgbImage,
        latents: &ArrayD<f32>,
        plan: &Plan,
    ) -> Result<(RgbImage, ArrayD<f32>, Option<GrayImage>)> {
        let map = keep.map(&image, plan, || self.pipe.decode(first, plan))?;
        let picture = keep::mix(&source.picture, image, &map);
        let result = array::from_array(&latents.view())?;
        let mixed = keep::mix_latents(&pack(first)?, &result, &map, plan.target)?;
        Ok((picture, array::to_array(&mixed)?, Some(map)))
    }
}
