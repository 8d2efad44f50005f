#![doc = include_str!("../README.md")]

mod assemble;
mod base;
mod bounds;
pub mod dataset;
mod flow;
mod from_scratch;
mod memory;
mod optim;
mod run;
mod warning;

pub use assemble::assemble;
pub use base::Base;
pub use flow::{
    Activations, Data, Density, LoraMethod, Method, Objective, Recipe, StepReport, TrainEvent, Trainer, Weighting,
    add_noise, backward,
};
pub use from_scratch::{
    AutoencoderEvent, AutoencoderRecipe, AutoencoderReport, AutoencoderTrainer, TextRecipe, TextReport, initial,
    initial_transformer, train_text, write_tokenizers,
};
pub use optim::{AdamW, AdamWConfig, Ema, LrSchedule, Params};
pub use run::{Change, Intervals, Snapshot, differences};
pub use warning::RecipeWarning;
