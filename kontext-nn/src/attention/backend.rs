//! The kernel of attention of one run.
//!
//! libtorch's own switch is global to the program, and two pipelines would fight over it. A backend is a value instead,
//! and a thread uses it for a closure, as it does [`AdapterSet`](crate::AdapterSet).

use std::cell::RefCell;
use std::sync::Arc;

use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_device::cuda::Driver;

use super::choice::{Attention, AttentionKernel};
use super::flash3::Flash3;
use super::{merge_heads, operators};

thread_local! {
    /// Backends in use, the innermost last.
    static IN_USE: RefCell<Vec<AttentionBackend>> = const { RefCell::new(Vec::new()) };
}

/// Tokens of the heads by which libtorch is asked for its choice, which it makes by dtype, width and device.
const ASKED: i64 = 64;

/// A kernel of attention that is ready for a device and a dtype. A clone shares its library.
///
/// # Example
/// ```
/// use kontext_core::{Device, Kind};
/// use kontext_nn::{Attention, AttentionBackend, AttentionKernel};
/// let automatic = AttentionBackend::open(&Attention::Automatic, Device::Cpu, Kind::Float)?;
/// assert_eq!(automatic.kernel(24, 128)?, AttentionKernel::Flash);
/// assert!(AttentionBackend::open(&Attention::CuDnn, Device::Cpu, Kind::Float).is_err());
/// # Ok::<(), kontext_core::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct AttentionBackend {
    kernel: Option<AttentionKernel>,
    flash3: Option<Arc<Flash3>>,
    device: Device,
    kind: Kind,
}

impl AttentionBackend {
    /// Makes a chosen kernel ready, for runs on a device that compute in a dtype. Opens its library.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the device or the dtype does not have the kernel, or the library is not one of
    /// FlashAttention-3; [`Error::Io`] if its file cannot be read; [`Error::Device`] if the device's driver fails.
    pub fn open(choice: &Attention, device: Device, kind: Kind) -> Result<Self> {
        check(choice, device, kind)?;
        let flash3 = match choice {
            Attention::Flash3 { library } | Attention::Flash3Fp8 { library } => Some(Flash3::open(library)?),
            _ => None,
        };
        Ok(Self {
            kernel: choice.kernel(),
            flash3,
            device,
            kind,
        })
    }

    /// Returns the kernel for heads of a width: the chosen one, else that which libtorch chooses.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn kernel(&self, heads: i64, width: i64) -> Result<AttentionKernel> {
        if let Some(kernel) = self.kernel {
            return Ok(kernel);
        }
        let tokens = Tensor::f_zeros([1, ASKED, heads, width], (self.kind, self.device))?;
        let x = tokens.f_transpose(-3, -2)?;
        // Numbers of libtorch's `SDPBackend`.
        match Tensor::f_internal_fused_sdp_choice(&x, &x, &x, None::<&Tensor>, 0.0, false, None, false)? {
            0 => Ok(AttentionKernel::Math),
            1 => Ok(AttentionKernel::Flash),
            2 => Ok(AttentionKernel::MemoryEfficient),
            3 => Ok(AttentionKernel::CuDnn),
            other => Err(Error::bug(format!("libtorch chose the kernel {other} of attention"))),
        }
    }

    /// Calls `f`. [`attend_tokens`](crate::ops::attend_tokens) uses this kernel meanwhile, on this thread only. Nested
    /// scopes: the innermost counts.
    pub fn scope<T>(&self, f: impl FnOnce() -> T) -> T {
        /// Ends the scope, also if `f` panics.
        struct End;
        impl Drop for End {
            fn drop(&mut self) {
                let ended = IN_USE.with_borrow_mut(Vec::pop);
                drop(ended);
            }
        }
        IN_USE.with_borrow_mut(|backends| backends.push(self.clone()));
        let _end = End;
        f()
    }

    /// Computes attention by the chosen kernel; `None` if libtorch chooses. Shapes as
    /// [`attend_tokens`](crate::ops::attend_tokens).
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
        let Some(kernel) = self.kernel else { return Ok(None) };
        let grad = [q, k, v].iter().any(|x| x.requires_grad());
        if let Some(flash3) = &self.flash3 {
            if grad {
                return Err(Error::invalid("attention", "one with gradients, for training", kernel));
            }
            let out = if kernel == AttentionKernel::Flash3Fp8 {
                flash3.attend_fp8(q, k, v)?.f_to_kind(q.kind())?
            } else {
                flash3.attend(q, k, v)?
            };
            return Ok(Some(out.f_flatten(-2, -1)?));
        }
        let heads = |x: &Tensor| x.f_transpose(-3, -2);
        let out = attend_heads(kernel, &heads(q)?, &heads(k)?, &heads(v)?, grad)?;
        merge_heads(&out).map(Some)
    }
}

/// Computes attention by a kernel of libtorch on heads [B, H, T, D]; `grad` if a gradient is wanted.
fn attend_heads(kernel: AttentionKernel, q: &Tensor, k: &Tensor, v: &Tensor, grad: bool) -> Result<Tensor> {
    match kernel {
        AttentionKernel::CuDnn => operators::cudnn(q, k, v, grad),
        AttentionKernel::Flash if q.device() != Device::Cpu => operators::flash(q, k, v),
        AttentionKernel::Flash => {
            let mask = None::<&Tensor>;
            Ok(Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, false, mask, None)?.0)
        }
        AttentionKernel::MemoryEfficient => {
            let bias = None::<&Tensor>;
            Ok(Tensor::f_internal_scaled_dot_product_efficient_attention(q, k, v, bias, grad, 0.0, false, None)?.0)
        }
        AttentionKernel::Math => {
            let none = None::<&Tensor>;
            Ok(Tensor::f_internal_scaled_dot_product_attention_math(q, k, v, none, 0.0, false, none, None, false)?.0)
        }
        AttentionKernel::Flash3 | AttentionKernel::Flash3Fp8 => Err(Error::bug("FlashAttention-3 without its library")),
    }
}

/// Computes attention by the kernel in use on this thread; `None` if there is none, or libtorch chooses.
pub(super) fn in_scope(q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Option<Tensor>> {
    let backend = IN_USE.with_borrow(|backends| backends.last().cloned());
    backend.map_or(Ok(None), |backend| backend.attend(q, k, v))
}

/// Checks that a device and a dtype have a kernel.
fn check(choice: &Attention, device: Device, kind: Kind) -> Result<()> {
    let refused = |expected: &str| Err(Error::invalid("attention", expected, choice));
    match (choice.kernel(), device) {
        (None | Some(AttentionKernel::Math), _) | (Some(AttentionKernel::Flash), Device::Cpu) => Ok(()),
        (_, Device::Cpu) => refused("auto, flash or math on a CPU"),
        (Some(AttentionKernel::MemoryEfficient), _) => Ok(()),
        (_, Device::Cuda(_)) if kind == Kind::Float => {
            refused("auto, memory-efficient or math in f32; the others compute in bf16")
        }
        (Some(kernel @ (AttentionKernel::Flash3 | AttentionKernel::Flash3Fp8)), Device::Cuda(index)) => {
            let driver = Driver::find()?;
            let found = driver.and_then(|driver| driver.devices.get(index).map(|device| device.capability));
            match found {
                Some(capability) if !has_flash3(kernel, capability) => refused(
                    "one that this card has: flash3 needs compute capability 8.0 to 9.0, and flash3-fp8 9.0; take auto",
                ),
                _ => Ok(()),
            }
        }
        (_, Device::Cuda(_)) => Ok(()),
        _ => refused("auto or math on this device"),
    }
}

/// Returns `true` if cards of a compute capability run FlashAttention-3.
fn has_flash3(kernel: AttentionKernel, capability: (i32, i32)) -> bool {
    let least = if kernel == AttentionKernel::Flash3Fp8 {
        (9, 0)
    } else {
        (8, 0)
    };
    (least..=(9, 0)).contains(&capability)
}
