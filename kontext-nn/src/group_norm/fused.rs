//! Group norm and SiLU by a kernel.

use std::cell::RefCell;

use kontext_core::{Kind, Result};
use kontext_kernels::Kernels;
use tch::Tensor;

use super::GroupNorm;
use crate::scope::scope;

thread_local! {
    /// A value for each scope in which norms leave their kernels unused.
    static UNUSED: RefCell<Vec<()>> = const { RefCell::new(Vec::new()) };
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

    /// Calls `f`, in which norms that this thread computes leave their kernels unused: their roundings are
    /// those of libtorch's operations, as other programs have them.
    pub fn without_kernels<T>(f: impl FnOnce() -> T) -> T {
        scope(&UNUSED, (), f)
    }

    /// Computes [`GroupNorm::forward`], or with `silu` [`GroupNorm::forward_silu`], by the kernel; `None` if
    /// there is none for the tensor.
    pub(super) fn by_kernels(&self, x: &Tensor, silu: bool) -> Result<Option<Tensor>> {
        let Self {
            weight, bias, groups, ..
        } = self;
        let wanted = x.kind() == Kind::BFloat16 && UNUSED.with_borrow(Vec::is_empty);
        self.kernels
            .as_ref()
            .filter(|kernels| wanted && kernels.takes_group_norm(x, weight, bias, *groups))
            .map(|kernels| kernels.group_norm_silu(x, weight, bias, *groups, self.eps, silu))
            .transpose()
    }
}
