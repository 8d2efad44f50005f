//! Training of the transformer: recipe, steps and the trainer.

mod check;
mod data;
mod event;
mod guided;
mod memory;
mod method;
mod probe;
mod probe_report;
mod quality;
mod recipe;
mod samples;
mod step;
mod student_defaults;
mod teacher_images;
mod trained;
mod trainer;
mod training_loop;
mod turn;
mod update;
mod warnings;

pub use event::{StepReport, TrainEvent};
pub use method::{LoraMethod, Method};
pub use probe::{ProbeOptions, probe};
pub use probe_report::{ProbeReport, ProbeRow};
pub use recipe::{Data, Recipe};
pub use trainer::Trainer;
