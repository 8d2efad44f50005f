//! Training objectives by name, and the choices of each.

mod adversarial;
mod flow;
mod guided;
mod kind;

use kontext_core::Result;
use kontext_sampler::Shift;
use rand::Rng;

pub(crate) use adversarial::GROUPS;
pub use adversarial::{AdversarialObjective, Pairing, Real};
pub use flow::{Density, FlowObjective, Weighting, add_noise};
pub(crate) use flow::{flows_velocity, weighted_error};
pub use guided::GuidedObjective;

/// The training objective of a recipe: its table `[objective]`, by the table's `kind`.
///
/// A table without `kind` is of [`Objective::Flow`], and that is written without it.
///
/// ```
/// use kontext_train::{FlowObjective, Objective};
///
/// let objective: Objective = toml::from_str("drop_prompt = 0.1")?;
/// let flow = FlowObjective { drop_prompt: 0.1, ..FlowObjective::default() };
/// assert_eq!(objective, Objective::Flow(flow));
/// assert_eq!(toml::from_str::<Objective>("kind = 'flow'\ndrop_prompt = 0.1")?, objective);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Objective {
    /// `flow`: rectified flow, the objective of the base models.
    Flow(FlowObjective),
    /// `adversarial`: distillation to a few steps by a critic on the base model's features (LADD).
    Adversarial(Box<AdversarialObjective>),
    /// `guided`: distillation of classifier-free guidance into a guidance embedding.
    Guided(GuidedObjective),
}

impl Default for Objective {
    fn default() -> Self {
        Self::Flow(FlowObjective::default())
    }
}

impl Objective {
    /// Returns the choices of the flow objective; `None` for another one.
    #[must_use]
    pub fn flow(&self) -> Option<&FlowObjective> {
        match self {
            Self::Flow(flow) => Some(flow),
            Self::Adversarial(_) | Self::Guided(_) => None,
        }
    }

    /// Returns the choices of the adversarial objective; `None` for another one.
    #[must_use]
    pub fn adversarial(&self) -> Option<&AdversarialObjective> {
        match self {
            Self::Adversarial(adversarial) => Some(adversarial),
            Self::Flow(_) | Self::Guided(_) => None,
        }
    }

    /// Returns the choices of guidance distillation; `None` for another objective.
    #[must_use]
    pub fn guided(&self) -> Option<&GuidedObjective> {
        match self {
            Self::Guided(guided) => Some(guided),
            Self::Flow(_) | Self::Adversarial(_) => None,
        }
    }

    /// Returns the input of models with a guidance embedding: the middle of a range of guidance.
    #[must_use]
    pub fn guidance(&self) -> f64 {
        match self {
            Self::Flow(flow) => flow.guidance,
            Self::Adversarial(adversarial) => adversarial.guidance,
            Self::Guided(guided) => guided.middle(),
        }
    }

    /// Returns `true` if the training needs the base model's passes, too.
    pub(crate) fn has_teacher(&self) -> bool {
        match self {
            Self::Flow(_) => false,
            Self::Adversarial(objective) => objective.has_critic() || objective.real != Real::Data,
            Self::Guided(_) => true,
        }
    }

    /// Returns the share of items trained with the empty prompt.
    #[must_use]
    pub fn drop_prompt(&self) -> f64 {
        self.flow().map_or(0.0, |flow| flow.drop_prompt)
    }

    /// Returns the share of batches trained without their reference images.
    #[must_use]
    pub fn drop_context(&self) -> f64 {
        self.flow().map_or(0.0, |flow| flow.drop_context)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`kontext_core::Error::InvalidArgument`], naming the field.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Flow(flow) => flow.validate(),
            Self::Adversarial(adversarial) => adversarial.validate(),
            Self::Guided(guided) => guided.validate(),
        }
    }

    /// Draws the noise levels of a batch at optimizer step `step` (from 0), in (0, 1].
    pub(crate) fn draw(
        &self,
        rng: &mut impl Rng,
        batch: usize,
        step: u64,
        target_tokens: i64,
        shift: Shift,
    ) -> Result<Vec<f64>> {
        match self {
            Self::Flow(flow) => Ok(flow.draw(rng, batch, target_tokens, shift)),
            Self::Adversarial(adversarial) => adversarial.draw(rng, batch, step, target_tokens, shift),
            Self::Guided(guided) => Ok(guided.flow().draw(rng, batch, target_tokens, shift)),
        }
    }

    /// Draws the guidance of a batch.
    pub(crate) fn draw_guidance(&self, rng: &mut impl Rng) -> f64 {
        self.guided()
            .map_or_else(|| self.guidance(), |guided| guided.draw_guidance(rng))
    }
}
