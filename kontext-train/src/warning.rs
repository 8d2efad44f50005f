//! Warnings of a recipe: settings without effect.

use std::fmt;

use kontext_core::{printable, shortened};

use crate::optim::LrSchedule;

/// Characters of a name of the recipe or the data that a warning shows.
const SHOWN: usize = 80;

/// A setting of a recipe that has no effect with its model and its data.
///
/// It prints as a sentence that says what to set. All of them are known before any work: see
/// [`Recipe::check`](crate::Recipe::check). A default is never warned of, except the intervals of
/// [`RecipeWarning::NothingHeldOut`] and the warm-up.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RecipeWarning {
    /// The run ends with the warm-up, so that `rate.floor` has no effect.
    OnlyWarmup {
        /// Steps of the warm-up.
        warmup: u64,
        /// Steps of the run.
        steps: u64,
    },
    /// `objective.guidance` has no effect, because the model embeds none.
    GuidanceIgnored {
        /// The value.
        guidance: f64,
    },
    /// `objective.drop_context` has no effect, because no training example has a reference image.
    DropContextIgnored,
    /// `objective.drop_prompt` has no effect, because all training examples have the empty prompt.
    DropPromptIgnored,
    /// Settings of a critic have no effect, because the objective trains none (`objective.adversarial_weight`
    /// is 0), or the part of it that they set has the weight 0.
    CriticIgnored {
        /// The fields, as `objective.r1`.
        fields: Vec<&'static str>,
        /// The weight that is 0, as `objective.adversarial_weight`.
        weight: &'static str,
    },
    /// `objective.warmup_shares` has no effect, because `objective.warmup` is 0.
    WarmupSharesIgnored,
    /// An entry of `data.weights` has no effect: no training example has a category with this prefix, or all
    /// that have it have a longer one, too.
    WeightIgnored {
        /// The prefix.
        prefix: String,
    },
    /// Nothing is validated or sampled at the intervals, because the data has no examples of the split
    /// `data.validation`.
    NothingHeldOut {
        /// The split.
        split: String,
    },
}

impl RecipeWarning {
    /// Returns the warning for a rate that ends with its warm-up.
    pub(crate) fn of_rate(rate: &LrSchedule, steps: u64) -> Option<Self> {
        (rate.warmup >= steps).then_some(Self::OnlyWarmup {
            warmup: rate.warmup,
            steps,
        })
    }
}

impl fmt::Display for RecipeWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |name: &str| shortened(&printable(name), SHOWN);
        match self {
            Self::OnlyWarmup { warmup, steps } => write!(
                f,
                "rate.warmup is {warmup} and the run has {steps} steps: it ends with the warm-up, and rate.floor has no \
                 effect; take a shorter warm-up"
            ),
            Self::GuidanceIgnored { guidance } => write!(
                f,
                "objective.guidance ({guidance}) has no effect: the model has no guidance embedding; leave it out"
            ),
            Self::DropContextIgnored => f.write_str(
                "objective.drop_context has no effect: no training example has a reference image (`source`); leave it out",
            ),
            Self::DropPromptIgnored => f.write_str(
                "objective.drop_prompt has no effect: all training examples have the empty prompt; leave it out",
            ),
            Self::CriticIgnored { fields, weight } => write!(
                f,
                "{} without effect: {weight} is 0; leave them out, or set a weight",
                fields.join(", ")
            ),
            Self::WarmupSharesIgnored => f.write_str(
                "objective.warmup_shares has no effect: objective.warmup is 0; leave it out, or set a warm-up",
            ),
            Self::WeightIgnored { prefix } => write!(
                f,
                "the entry `{}` of data.weights has no effect: it is the longest prefix of no training example's category; \
                 correct it, or leave it out",
                shown(prefix)
            ),
            Self::NothingHeldOut { split } => write!(
                f,
                "nothing is validated or sampled: the data has no example of split `{}`; add some, name another split in \
                 data.validation, or set every.validate and every.sample to 0",
                shown(split)
            ),
        }
    }
}
