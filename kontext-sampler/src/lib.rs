#![doc = include_str!("../README.md")]

mod conformance;
mod euler;
pub mod geometry;
pub mod guidance;
pub mod ids;
mod pack;
mod schedule;
mod shift;

pub use conformance::Conformance;
pub use euler::{Step, add_noise, integrate};
pub use geometry::{Grid, Size};
pub use guidance::CfgMode;
pub use ids::References;
pub use pack::{pack, unpack};
pub use schedule::{Schedule, TIME_FACTOR};
pub use shift::Shift;
