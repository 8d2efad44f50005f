#![doc = include_str!("../README.md")]

mod conformance;
pub mod geometry;
pub mod guidance;
mod guidance_schedule;
pub mod ids;
mod inpainting;
mod pack;
mod sampler;
mod sampling;
mod schedule;
mod scheduler_config;
mod shift;

pub use conformance::Conformance;
pub use geometry::{Grid, Size};
pub use guidance::CfgMode;
pub use guidance_schedule::GuidanceSchedule;
pub use ids::References;
pub use inpainting::Inpainting;
pub use pack::{pack, unpack};
pub use sampler::Sampler;
pub use sampling::{Sampling, Step, add_noise, integrate};
pub use schedule::{Schedule, TIME_FACTOR};
pub use scheduler_config::SchedulerConfig;
pub use shift::Shift;
