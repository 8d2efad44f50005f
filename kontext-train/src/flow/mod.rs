//! Flow-matching training of the transformer: recipe, objective, steps and the trainer.

mod backward;
mod check;
mod data;
mod event;
mod memory;
mod method;
mod objective;
mod recipe;
mod samples;
mod step;
mod trained;
mod trainer;
mod training_loop;
mod update;
mod warnings;

pub use backward::{Activations, backward};
pub use event::{StepReport, TrainEvent};
pub use method::{LoraMethod, Method};
pub use objective::{Density, Objective, Weighting, add_noise};
pub use recipe::{Data, Recipe};
pub use trainer::Trainer;
