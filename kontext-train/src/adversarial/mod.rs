//! Adversarial distillation: the critic on the teacher's features, and the signs of its failure.

mod features;
mod heads;
mod losses;
mod pair;
mod quality;
mod sign;
mod spectral;

pub(crate) use features::{prepare, prepare_with};
pub(crate) use heads::{HeadSizes, Heads};
pub(crate) use pair::{CriticLoss, Pair, Renoising, Teacher};
pub use quality::Quality;
pub(crate) use quality::{Results, quality, record as quality_record, restore as restore_quality};
pub use sign::Sign;
pub(crate) use sign::{Found, Judging, of_results, of_steps};
