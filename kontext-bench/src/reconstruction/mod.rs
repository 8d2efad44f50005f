//! Reconstruction quality of autoencoders: the table of the paper on FLUX.1 Kontext, for any autoencoder.
//!
//! The crate contains no autoencoder: the caller encodes and decodes an image. [`Subject::measure`] compares
//! the two and appends the numbers to a file of [`Records`], from which an interrupted run resumes; [`Table`]
//! summarises them, and a [`Strip`] shows crops.
//!
//! Source: Black Forest Labs, "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in
//! Latent Space" (2025), table 1: PDist, SSIM and PSNR of Flux-VAE, SD3-VAE, SD3-TAE, SDXL-VAE and SD-VAE,
//! with standard errors. [`PUBLISHED`] has their means, which a table shows below measurements of the same distance.

mod measure;
mod published;
mod records;
mod row;
mod size;
mod strip;
mod table;

pub use measure::{Measurement, Subject};
pub use published::{PUBLISHED, PUBLISHED_IMAGES, PUBLISHED_SIDE, Published};
pub use records::Records;
pub use row::Row;
pub use size::{ImageSize, MULTIPLE};
pub use strip::Strip;
pub use table::{Distances, Table};
