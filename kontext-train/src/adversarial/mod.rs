//! Adversarial distillation: the critic on the teacher's features, and the signs of its failure.

mod features;
mod heads;
mod initial_heads;
mod losses;
mod pair;
mod quality;
mod sign;
mod spectral;

pub(crate) use heads::Heads;
pub(crate) use initial_heads::HeadSizes;
pub(crate) use pair::{CriticLoss, Pair, Renoising, Teacher};
pub use quality::Quality;
pub(crate) use quality::{Results, quality, record as quality_record, restore as restore_quality};
pub use sign::Sign;
pub(crate) use sign::{Found, Judging, of_results, of_steps};
