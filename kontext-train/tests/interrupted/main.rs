//! Runs that end at any renaming of a file, diverge, or go on under another recipe: their folder is that of an
//! unbroken run in the end, or they are refused.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod autoencoder;
mod changed;
mod diverged;
mod ended;
#[path = "../world/mod.rs"]
mod model;
mod text;
mod world;
