//! Reuse between the steps of a run: steps whose blocks are not computed.
//!
//! From step to step the change that all blocks together make to the target's tokens varies little. A skipped step adds
//! the change of an earlier one to its input, and computes the input projection and the last layer only, with the
//! modulation of its own noise level.

mod first_block;
mod forward;
mod magcache;
mod mode;
mod parameter;
mod published;
mod residual;
mod state;
mod taylor;
mod teacache;
mod text;
mod work;

pub use first_block::FirstBlock;
pub use magcache::MagCache;
pub use mode::StepCache;
pub use state::CachedRun;
pub use taylor::Taylor;
pub use teacache::TeaCache;
pub use work::StepWork;
