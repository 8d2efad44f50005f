#![doc = include_str!("../README.md")]

mod adversarial;
mod assemble;
mod backward;
mod base;
mod bounds;
pub mod dataset;
mod flow;
mod from_scratch;
mod memory;
mod objective;
mod optim;
mod pass;
mod run;
mod warning;

pub use adversarial::{Quality, Sign};
pub use assemble::assemble;
pub use backward::{Activations, backward};
pub use base::Base;
pub use flow::{
    Data, LoraMethod, Method, ProbeOptions, ProbeReport, ProbeRow, Recipe, StepReport, TrainEvent, Trainer, probe,
};
pub use from_scratch::{
    AutoencoderEvent, AutoencoderRecipe, AutoencoderReport, AutoencoderTrainer, TextRecipe, TextReport, initial,
    initial_transformer, train_text, write_tokenizers,
};
pub use objective::{
    AdversarialObjective, Density, FlowObjective, GuidedObjective, Objective, Pairing, Real, Weighting, add_noise,
};
pub use optim::{AdamW, AdamWConfig, Ema, LrSchedule, Params};
pub use run::{Change, CriticReport, Intervals, Snapshot, differences};
pub use warning::RecipeWarning;
