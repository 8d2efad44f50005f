//! The trainer of the transformer: a recipe's run, opened or resumed.

use std::ops::ControlFlow;
use std::path::Path;

use kontext_core::{Error, Result, Stage};

use crate::adversarial::restore_quality;
use crate::dataset::EncodedDataset;
use crate::run::curve::Curve;
use crate::run::shell::Shell;

use super::check::{Opened, compute_kind};
use super::data::{Batches, encoded};
use super::event::TrainEvent;
use super::recipe::Recipe;
use super::teacher_images::teacher_images;
use super::trained::Trained;
use super::training_loop::{Flow, FlowTraining};
use super::turn::Critic;

/// A training run of the transformer.
///
/// Its folder holds, in the order in which a save writes them:
///
/// | file | content |
/// | --- | --- |
/// | `cache/` | the encoded data, and the images of [`crate::Real::Teacher`], written before the first step |
/// | `samples-NNNNNN.png` | held-out items, written when due |
/// | `lora.safetensors` or `transformer/` | the result so far, by the moving average |
/// | `kontext.json` | next to the `transformer/` of a few-step student: its settings, for [`crate::assemble`] |
/// | `curve.svg`, `curve.csv` | the loss of each step |
/// | `state.safetensors` | values, optimizer, moving average, curve, recipe, and digests of model and data |
///
/// Each file appears whole or not at all. The state comes last, and the others follow from it: a run that is
/// killed, or whose disk is full, goes on from the last state to the files of an unbroken run, byte for byte on
/// one CPU. Complete runs write their result again.
///
/// Nothing is written of values that are not finite, or whose loss is not, or has diverged; nor, at the
/// intervals, after an unusually high loss. The state before is then kept.
///
/// A state only goes on under the recipe, the model and the data that it was trained with. Free to change are
/// the places `model`, `out`, `data.folder`, `data.cache` and `device`, and `every`, `recompute`,
/// `data.validation_items` and `objective.patience`, which do not affect the trained values. `method` cannot
/// change. Others can if [`Recipe::accept_changes`] names them.
pub struct Trainer {
    shell: Shell,
    flow: Flow,
    /// The failure of the training, after which the current values are of no use.
    failed: Option<Failed>,
}

/// A training whose values are of no use.
#[derive(Debug, Clone)]
enum Failed {
    NotFinite {
        stage: Stage,
        hint: String,
    },
    Diverged {
        step: u64,
        loss: f64,
        usual: f64,
        hint: String,
    },
    Collapsed {
        step: u64,
        sign: String,
        remedy: String,
    },
}

impl Failed {
    /// Returns the failure; `None` after any other end of a training.
    fn of(result: &Result<()>) -> Option<Self> {
        match result {
            Err(Error::NotFinite { stage, hint }) => Some(Self::NotFinite {
                stage: *stage,
                hint: hint.clone(),
            }),
            Err(Error::Diverged {
                step,
                loss,
                usual,
                hint,
            }) => Some(Self::Diverged {
                step: *step,
                loss: *loss,
                usual: *usual,
                hint: hint.clone(),
            }),
            Err(Error::Collapsed { step, sign, remedy }) => Some(Self::Collapsed {
                step: *step,
                sign: sign.clone(),
                remedy: remedy.clone(),
            }),
            _ => None,
        }
    }

    /// Returns the error of the failure once more.
    fn error(&self) -> Error {
        match self.clone() {
            Self::NotFinite { stage, hint } => Error::NotFinite { stage, hint },
            Self::Diverged {
                step,
                loss,
                usual,
                hint,
            } => Error::Diverged {
                step,
                loss,
                usual,
                hint,
            },
            Self::Collapsed { step, sign, remedy } => Error::Collapsed { step, sign, remedy },
        }
    }
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("out", &self.flow.recipe.out)
            .field("step", &self.shell.step())
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// Reports the settings without effect, encodes the data, loads the model, and resumes from the state in the
    /// run's folder if there is one.
    ///
    /// # Errors
    /// Those of [`Recipe::check`], and of the model's and the dataset's files; [`Error::Cancelled`] if `observe`
    /// breaks off.
    pub fn open(recipe: Recipe, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<Self> {
        let Opened {
            device,
            base,
            dataset,
            mut shell,
            state,
            identity,
            warnings,
        } = recipe.opened()?;
        for warning in &warnings {
            shell.report(&mut observe, TrainEvent::Warning(warning))?;
        }
        let kind = compute_kind(device);
        let vae = base.vae(device)?;
        let dataset = encoded(&recipe, &base, dataset, &vae, device, kind, &mut observe)?;
        let mut trained = Trained::new(&recipe, &base, device, kind)?;
        let mut critic = Critic::new(&recipe, &base, device)?;
        let curve = Curve::open(&recipe.out, state.as_ref())?;
        let mut history = Vec::new();
        if let Some(state) = &state {
            let mut learners = vec![&mut trained.learner];
            if let Some(critic) = &mut critic {
                critic.heads.restore(state)?;
                learners.push(&mut critic.heads.learner);
            }
            history = restore_quality(state)?;
            shell.resume(state, learners, identity.new_loss())?;
            curve.restore()?;
        }
        let flow = Flow {
            identity,
            recipe,
            base,
            dataset,
            vae,
            trained,
            critic,
            curve,
            history,
            device,
            kind,
        };
        let count = |wanted: &str| flow.dataset.items().iter().filter(|i| i.split == wanted).count();
        let ready = TrainEvent::Ready {
            training: count(&flow.recipe.data.split),
            validation: flow.held_out().iter().map(Vec::len).sum(),
            values: flow.trained.learner.params.count(),
            resumed: shell.step(),
        };
        shell.report(&mut observe, ready)?;
        Ok(Self {
            shell,
            flow,
            failed: None,
        })
    }

    /// Returns the number of finished steps.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.shell.step()
    }

    /// Returns the encoded data.
    #[must_use]
    pub fn dataset(&self) -> &EncodedDataset {
        &self.flow.dataset
    }

    /// Trains to the last step of the recipe. Validates, samples and saves at its intervals and at the end,
    /// and saves if `observe` breaks off. A complete run writes its result again.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `observe` breaks off, [`Error::NotFinite`], [`Error::Diverged`] and
    /// [`Error::Collapsed`] if training fails (the last saved state remains), and those of the written files.
    pub fn run(&mut self, mut observe: impl FnMut(TrainEvent<'_>) -> ControlFlow<()>) -> Result<()> {
        let made = teacher_images(&self.flow, &mut observe)?;
        let batches = Batches::new(&self.flow.recipe, &self.flow.dataset, self.flow.base.shift, made)?;
        let mut training = FlowTraining {
            flow: &mut self.flow,
            batches,
        };
        let result = self.shell.run(&mut training, &mut observe);
        self.failed = Failed::of(&result);
        result
    }

    /// Writes the trained values, by their moving average: `transformer` in diffusers' layout, or
    /// `lora.safetensors`.
    ///
    /// # Errors
    /// The training's [`Error::NotFinite`], [`Error::Diverged`] or [`Error::Collapsed`] if it has failed,
    /// [`Error::Io`] if the folder cannot be written.
    pub fn export(&self) -> Result<()> {
        if let Some(failed) = &self.failed {
            return Err(failed.error());
        }
        self.flow.export(self.step())
    }

    /// Returns the mean loss on the held-out items, by the moving average; `None` if there are none.
    ///
    /// # Errors
    /// Those of the model.
    pub fn validate(&self) -> Result<Option<f64>> {
        self.flow.validate()
    }

    /// Writes a grid of held-out items: reference images, result, target.
    ///
    /// # Errors
    /// Those of the model, and [`Error::Io`].
    pub fn sample(&self, path: &Path) -> Result<()> {
        self.flow.sample(path)
    }
}
