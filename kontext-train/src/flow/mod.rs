//! Flow-matching training of the transformer: recipe, objective, steps and the trainer.

mod backward;
mod data;
mod event;
mod objective;
mod recipe;
mod samples;
mod step;
mod trained;
mod trainer;
mod training_loop;
mod update;

pub use backward::{Activations, backward};
pub use event::{StepReport, TrainEvent};
pub use objective::{Density, Objective, Weighting, add_noise};
pub use recipe::{Data, LoraMethod, Method, Recipe};
pub use trainer::Trainer;
