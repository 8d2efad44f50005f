//! Group norm and SiLU by a kernel, and scopes in which norms compute as other programs do.

use std::cell::RefCell;

use kontext_core::{Kind, Result};
use kontext_kernels::Kernels;
use tch::Tensor;

use super::GroupNorm;
use crate::scope::scope;

thread_local! {
    /// A value for each scope in which a thread's norms are libtorch's.
    static LIBTORCHS: RefCell<Vec<()>> = const { RefCell::new(Vec::new()) };
}

impl GroupNorm {
    /// Sets the kernels of the norm's device, or removes them (default: none). Kernels of any
    /// [`KernelShape`](kontext_kernels::KernelShape) serve.
    ///
    /// They compute channels-last tensors in bf16 of which no gradient is wanted
    /// ([`Kernels::takes_group_norm`]), and round once; other tensors take libtorch's operations.
    pub fn set_kernels(&mut self, kernels: Option<&Kernels>) {
        self.kernels = kernels.cloned();
    }

    /// Calls `f`, in which norms that this thread computes are libtorch's, with its roundings and its sums for the tensor's
    /// memory format: those of other programs, whose tensors have the same format.
    pub fn by_libtorch_in<T>(f: impl FnOnce() -> T) -> T {
        scope(&LIBTORCHS, (), f)
    }

    /// Returns `true` if the norms of this thread are libtorch's.
    pub(super) fn is_libtorchs() -> bool {
        !LIBTORCHS.with_borrow(Vec::is_empty)
    }

    /// Computes [`GroupNorm::forward`], or with `silu` [`GroupNorm::forward_silu`], by the kernel; `None` if
    /// there is none for the tensor.
    pub(super) fn by_kernels(&self, x: &Tensor, silu: bool) -> Result<Option<Tensor>> {
        let Self {
            weight, bias, groups, ..
        } = self;
        let wanted = x.kind() == Kind::BFloat16 && !Self::is_libtorchs();
        self.kernels
            .as_ref()
            .filter(|kernels| wanted && kernels.takes_group_norm(x, weight, bias, *groups))
            .map(|kernels| kernels.group_norm_silu(x, weight, bias, *groups, self.eps, silu))
            .transpose()
    }
}
