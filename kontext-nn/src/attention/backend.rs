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
use crate::scope::scope;

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

    /// Makes an opened library ready for CPU tensors, of which tests have kernels.
    #[cfg(test)]
    pub(super) fn of_library(kernel: AttentionKernel, flash3: Arc<Flash3>) -> Self {
        Self {
            kernel: Some(kernel),
            flash3: Some(flash3),
            device: Device::Cpu,
            kind: Kind::Float,
        }
    }

    /// Returns the kernel for heads of a width: the chosen one, else that which libtorch chooses.
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails.
    pub fn kernel(&self, heads: i64, width: i64) -> Result<AttentionKernel> {
        self.kernel_in(self.kind, heads, width)
    }

    /// Returns the kernel as [`AttentionBackend::kernel`], for a run that computes in another dtype, as runs on a CPU
    /// may.
    ///
    /// # Errors
    /// Those of [`AttentionBackend::kernel`].
    pub fn kernel_in(&self, kind: Kind, heads: i64, width: i64) -> Result<AttentionKernel> {
        if let Some(kernel) = self.kernel {
            return Ok(kernel);
        }
        #[cfg(target_arch = "x86_64")]
        if self.device == Device::Cpu && kind == Kind::BFloat16 && crate::bf16_attention::serves(width) {
            return Ok(AttentionKernel::Avx512);
        }
        let tokens = Tensor::f_zeros([1, ASKED, heads, width], (kind, self.device))?;
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
        scope(&IN_USE, self.clone(), f)
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
        AttentionKernel::Avx512 => Err(Error::bug("the kernel of AVX-512 by choice")),
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

#[cfg(test)]
mod tests {
    use kontext_core::noise;

    use super::*;
    use crate::attention::{attend, attend_tokens, split_heads};

    fn cpu(choice: &Attention) -> AttentionBackend {
        AttentionBackend::open(choice, Device::Cpu, Kind::Float).unwrap()
    }

    /// Queries of 33 tokens and keys of 70, views of one projection.
    fn heads() -> [Tensor; 3] {
        let qkv = noise::randn(&[2, 70, 3, 4, 16], 0, Kind::Float, Device::Cpu).unwrap();
        let part = |index| qkv.select(2, index);
        [part(0).narrow(1, 37, 33), part(1), part(2)]
    }

    #[test]
    fn kernels_agree_within_rounding_and_the_innermost_scope_counts() {
        let [q, k, v] = heads();
        let automatic = attend_tokens(&q, &k, &v).unwrap();
        let by = |choice: &Attention| cpu(choice).scope(|| attend_tokens(&q, &k, &v)).unwrap();
        assert!(by(&Attention::Automatic).equal(&automatic));
        assert!(by(&Attention::Flash).equal(&automatic));
        let math = by(&Attention::Math);
        let error = ((&math - &automatic).norm() / automatic.norm()).double_value(&[]);
        assert!(error < 1e-6 && !math.equal(&automatic), "{error}");
        let inner = cpu(&Attention::Math).scope(|| by(&Attention::Flash));
        assert!(inner.equal(&automatic));
        let nested = cpu(&Attention::Flash).scope(|| by(&Attention::Math));
        assert!(nested.equal(&math));
    }

    #[test]
    fn two_threads_use_two_kernels_at_the_same_time() {
        let [q, k, v] = heads();
        let expected = cpu(&Attention::Math).scope(|| attend_tokens(&q, &k, &v)).unwrap();
        let other = cpu(&Attention::Math).scope(|| {
            let own = std::thread::spawn(|| {
                let [q, k, v] = heads();
                attend_tokens(&q, &k, &v).unwrap()
            });
            assert!(attend_tokens(&q, &k, &v).unwrap().equal(&expected));
            own.join().unwrap()
        });
        assert!(other.equal(&attend_tokens(&q, &k, &v).unwrap()));
    }

    #[test]
    fn a_panic_ends_the_scope() {
        let panicked = std::panic::catch_unwind(|| cpu(&Attention::Math).scope(|| panic!("in the scope")));
        assert!(panicked.is_err());
        assert!(IN_USE.with_borrow(Vec::is_empty));
    }

    /// The result of flash is in the order of the queries, so its heads are merged without a copy; that of the matrix
    /// products is not.
    #[test]
    fn the_heads_of_flash_are_merged_without_a_copy() {
        let [q, k, v] = heads().map(|x| x.transpose(1, 2));
        for (kernel, in_order) in [(AttentionKernel::Flash, true), (AttentionKernel::Math, false)] {
            let out = attend_heads(kernel, &q, &k, &v, false).unwrap();
            assert_eq!(out.transpose(1, 2).is_contiguous(), in_order, "{kernel}");
            assert_eq!(
                merge_heads(&out).unwrap().data_ptr() == out.data_ptr(),
                in_order,
                "{kernel}"
            );
        }
        let automatic = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None, false);
        assert_eq!(merge_heads(&automatic).unwrap().data_ptr(), automatic.data_ptr());
    }

    #[test]
    fn kernels_pass_gradients_on() {
        for choice in [Attention::Automatic, Attention::Flash, Attention::Math] {
            let [q, k, v] = heads();
            let q = q.detach().copy().set_requires_grad(true);
            let out = cpu(&choice).scope(|| attend_tokens(&q, &k, &v)).unwrap();
            out.sum(Kind::Float).backward();
            assert!(q.grad().norm().double_value(&[]) > 0.0, "{choice}");
        }
    }

    #[test]
    fn a_kernel_that_a_cpu_lacks_is_refused_by_its_name() {
        let library = "absent.so".into();
        for choice in [
            Attention::CuDnn,
            Attention::MemoryEfficient,
            Attention::Flash3 { library },
            Attention::Flash3Fp8 {
                library: "absent.so".into(),
            },
        ] {
            let error = AttentionBackend::open(&choice, Device::Cpu, Kind::Float).unwrap_err();
            let expected = format!("invalid attention: expected auto, flash or math on a CPU, got {choice}");
            assert_eq!(error.to_string(), expected);
        }
        let error = check(&Attention::CuDnn, Device::Cuda(0), Kind::Float)
            .unwrap_err()
            .to_string();
        assert!(error.contains("in f32") && error.ends_with("got cudnn"), "{error}");
        check(&Attention::MemoryEfficient, Device::Cuda(0), Kind::Float).unwrap();
        check(&Attention::CuDnn, Device::Cuda(0), Kind::BFloat16).unwrap();
    }

    #[test]
    fn cards_that_run_flash_attention_3_are_known() {
        let has = |kernel, capabilities: &[(i32, i32)]| {
            capabilities
                .iter()
                .map(|capability| has_flash3(kernel, *capability))
                .collect::<Vec<_>>()
        };
        let cards = [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)];
        assert_eq!(
            has(AttentionKernel::Flash3, &cards),
            [false, true, true, true, false, false]
        );
        assert_eq!(
            has(AttentionKernel::Flash3Fp8, &cards),
            [false, false, false, true, false, false]
        );
    }

    #[test]
    fn the_kernel_of_a_run_is_known_before_it() {
        let kernel = |choice: Attention| cpu(&choice).kernel(24, 128).unwrap();
        assert_eq!(kernel(Attention::Automatic), AttentionKernel::Flash);
        assert_eq!(kernel(Attention::Flash), AttentionKernel::Flash);
        assert_eq!(kernel(Attention::Math), AttentionKernel::Math);
    }

    /// On a GPU each kernel of libtorch agrees with the matrix products, and the automatic choice is one of the fused.
    #[test]
    fn kernels_of_a_gpu_agree() {
        let device = Device::Cuda(0);
        if let Err(error) = kontext_device::device::available(device) {
            println!("skipped: {error}");
            return;
        }
        let [q, k, v] = heads().map(|x| x.to_kind(Kind::BFloat16).to_device(device));
        let open = |choice: &Attention| AttentionBackend::open(choice, device, Kind::BFloat16).unwrap();
        let automatic = open(&Attention::Automatic).kernel(4, 16).unwrap();
        assert_ne!(automatic, AttentionKernel::Math);
        let math = open(&Attention::Math).scope(|| attend_tokens(&q, &k, &v)).unwrap();
        for choice in [Attention::CuDnn, Attention::Flash, Attention::MemoryEfficient] {
            let out = open(&choice).scope(|| attend_tokens(&q, &k, &v)).unwrap();
            let error = (&out - &math).norm().double_value(&[]) / math.norm().double_value(&[]);
            assert!(error < 1e-2, "{choice}: {error}");
            let heads = |x: &Tensor| x.transpose(1, 2);
            let kernel = choice.kernel().unwrap();
            let raw = attend_heads(kernel, &heads(&q), &heads(&k), &heads(&v), false).unwrap();
            assert!(raw.transpose(1, 2).is_contiguous(), "{choice}");
        }
    }

    #[test]
    fn only_attention_by_token_is_chosen() {
        let x = noise::randn(&[1, 9, 32], 3, Kind::Float, Device::Cpu).unwrap();
        let heads = split_heads(&x, 2).unwrap();
        let plain = attend(&heads, &heads, &heads, None, None).unwrap();
        let scoped = cpu(&Attention::Math).scope(|| attend(&heads, &heads, &heads, None, None));
        assert!(scoped.unwrap().equal(&plain));
    }
}
