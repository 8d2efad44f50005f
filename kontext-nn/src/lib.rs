#![doc = include_str!("../README.md")]

mod adapter;
mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16_attention;
mod bf16_rows;
mod conv;
mod dequant;
mod embedding;
pub mod footprint;
mod fp8;
mod group_norm;
mod in_kinds;
mod linear;
mod matrix;
mod norm;
pub mod ops;
mod prefetch;
mod scope;
mod scratch;
mod weights;

pub use adapter::{AdapterSet, AdapterSlots, Adapters, DoraNorm, LinearAdapter};
pub use attention::{Attention, AttentionBackend, AttentionKernel};
pub use conv::Conv2d;
pub use embedding::Embedding;
pub use fp8::{Fp8Rows, without_fp8};
pub use group_norm::GroupNorm;
pub use in_kinds::InKinds;
pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use prefetch::BUFFERS as PREFETCH_BUFFERS;
pub use weights::{Offload, Weights};
