//! Editing in turns: each turn edits the result of the last.

mod edit;
mod files;
mod history;
mod index;
mod keep;
mod restore;
mod save;
mod turn;

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;
use kontext_core::Result;

use self::history::History;
pub use self::keep::{DifferenceMap, KeepUnchanged};
pub use self::turn::Turn;
use crate::{IntoImage, Pipeline, Request};

/// An image edited in turns, with its history.
///
/// The first turn's context is the encoded image. From then on the latents of one turn are the context of the
/// next, without a round trip through the autoencoder or 8-bit pixels. Repeated prompts and reference images
/// are taken from the pipeline's cache ([`encoding_cache`](crate::PipelineBuilder::encoding_cache)). The same
/// requests with the same seeds give the same bytes, also after the session was saved and restored.
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
    ///
    /// [`Error::Io`]: crate::Error::Io
    /// [`Error::Image`]: crate::Error::Image
    /// [`Error::Checkpoint`]: crate::Error::Checkpoint
    /// [`Error::Allocation`]: crate::Error::Allocation
    pub fn restore_session(self: &Arc<Self>, folder: impl AsRef<Path>) -> Result<Session> {
        restore::restore(self, folder.as_ref())
    }
}

impl Session {
    fn new(pipe: Arc<Pipeline>, history: History) -> Self {
        Self {
            keep_unchanged: None,
            reencode: false,
            defaults: Request::default(),
            id: format!("{:032x}", rand::random::<u128>()),
            pipe,
            history,
        }
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
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an unknown turn.
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
    ///
    /// [`Error::InvalidArgument`]: crate::Error::InvalidArgument
    /// [`Error::Io`]: crate::Error::Io
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        save::save(self, folder.as_ref())
    }
}

/// Returns the image, copied if it is shared.
fn owned(image: impl IntoImage) -> RgbImage {
    Arc::unwrap_or_clone(image.into_image())
}
