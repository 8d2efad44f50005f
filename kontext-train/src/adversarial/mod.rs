//! Adversarial distillation: the critic on the teacher's features, and the signs of its failure.

mod features;
mod heads;
mod losses;
mod pair;
mod spectral;

pub(crate) use features::prepare;
pub(crate) use heads::{HeadSizes, Heads};
pub(crate) use pair::{CriticLoss, Pair, Renoising, Teacher};
