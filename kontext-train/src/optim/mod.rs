//! Trained values, the optimizers that update them, and the learning-rate schedule.

mod adamw;
mod ema;
mod gradient;
mod learner;
mod lr_schedule;
mod muon;
mod params;

pub use adamw::{AdamW, AdamWConfig};
pub use ema::Ema;
pub(crate) use learner::{Learner, LearnerConfig, RESUME};
pub use lr_schedule::LrSchedule;
pub use params::Params;
