//! A training loop as the shell sees it: its steps, its learners, and the files that it writes next to the state.

use std::collections::BTreeMap;
use std::path::Path;

use kontext_core::{Result, Tensor};

use super::segment::Segment;
use crate::optim::Learner;

/// A training loop. The optional methods return the event to report, if any.
pub(crate) trait Training {
    /// The type of its events.
    type Event;

    /// Trains the steps of a segment, each ended by [`Segment::finish_step`] and [`Segment::report`].
    fn train(&mut self, segment: &mut Segment<'_, Self::Event>) -> Result<()>;

    /// Returns the learners that a snapshot holds.
    fn learners(&self) -> Vec<&Learner>;

    /// Measures the loss of the last of `step` steps again, with the values after it.
    fn last_loss(&mut self, step: u64) -> Result<f64>;

    /// Returns further text for the snapshot.
    fn facts(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// Returns further tensors for the snapshot.
    fn records(&self) -> Result<Vec<(String, Tensor)>> {
        Ok(Vec::new())
    }

    /// Measures the held-out loss, and reports it.
    fn validate(&mut self, _step: u64, _report: &mut dyn FnMut(Self::Event) -> Result<()>) -> Result<()> {
        Ok(())
    }

    /// Writes samples to `path`.
    fn sample(&mut self, _step: u64, _path: &Path) -> Result<Option<Self::Event>> {
        Ok(None)
    }

    /// Writes the files of a save that are derived from the values, before the snapshot.
    fn derive(&mut self, _step: u64) -> Result<()> {
        Ok(())
    }

    /// Reports a save that was left out, because the run may be diverging.
    fn not_saved(&self, _step: u64, _usual: f64) -> Option<Self::Event> {
        None
    }

    /// Reports the snapshot at `state`, the last file of a save.
    fn saved(&self, _step: u64, _state: &Path) -> Option<Self::Event> {
        None
    }
}
