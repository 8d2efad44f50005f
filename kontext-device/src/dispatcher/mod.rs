//! Operators of libtorch that tch does not bind, and those of other libraries, called by their schema.
//!
//! The calls go through libtorch's stable C interface, whose functions are looked up in the program, so nothing is
//! compiled against libtorch. Source of the conventions: pytorch v2.11.0 `torch/csrc/stable/stableivalue_conversions.h`
//! and `torch/csrc/inductor/aoti_torch/c/shim.h`.

mod functions;
mod operator;
mod schema;
mod stack;

pub use self::operator::{Argument, Operator, Output};
