//! How well autoencoders keep pictures: the table of the paper on FLUX.1 Kontext, for any of them.
//!
//! The crate knows no autoencoder: whoever calls it encodes and decodes a picture. [`Subject::measure`] compares the
//! two and keeps the numbers in a file of [`Records`], from which a run that was stopped goes on; [`Table`] sums them
//! up, and a [`Strip`] shows crops.
//!
//! Source: Black Forest Labs, "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in Latent
//! Space" (2025), table 1: PDist, SSIM and PSNR of Flux-VAE, SD3-VAE, SD3-TAE, SDXL-VAE and SD-VAE, with standard
//! errors.

mod measure;
mod records;
mod size;
mod strip;
mod table;

pub use measure::{Measurement, Subject};
pub use records::Records;
pub use size::{MULTIPLE, PictureSize};
pub use strip::Strip;
pub use table::{Row, Table};
