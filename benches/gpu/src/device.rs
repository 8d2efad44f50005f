//! Timing, memory statistics and f32 precision of a device, from libtorch; on the CPU only the clock.

use std::ffi::{CStr, c_char, c_void};
use std::time::Instant;

use anyhow::bail;
use kontext::{Device, Kind, Tensor};
use kontext_device::cuda::Driver;

#[allow(unsafe_code)]
mod shim {
    use super::{c_char, c_void};

    unsafe extern "C" {
        pub(super) fn kit_set_tf32(convolutions: bool, products: bool) -> *const c_char;
        pub(super) fn kit_tf32(convolutions: *mut bool, products: *mut bool) -> *const c_char;
        pub(super) fn kit_memory(index: i8, out: *mut i64) -> *const c_char;
        pub(super) fn kit_reset_peak(index: i8) -> *const c_char;
        pub(super) fn kit_empty_cache() -> *const c_char;
        pub(super) fn kit_synchronize(index: i8) -> *const c_char;
        pub(super) fn kit_count_begin() -> *const c_char;
        pub(super) fn kit_count_end(out: *mut i64) -> *const c_char;
        pub(super) fn kit_event_new(event: *mut *mut c_void) -> *const c_char;
        pub(super) fn kit_event_delete(event: *mut c_void);
        pub(super) fn kit_event_record(index: i8, event: *mut c_void) -> *const c_char;
        pub(super) fn kit_event_elapsed(begin: *mut c_void, end: *mut c_void, milliseconds: *mut f64) -> *const c_char;
    }
}

/// Statistics of a CUDA device's caching allocator, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    /// Currently allocated to tensors.
    pub(crate) allocated: u64,
    /// Peak of `allocated` since [`reset_peak`].
    pub(crate) peak: u64,
    /// Peak of the memory reserved on the device, including the cache, since [`reset_peak`].
    pub(crate) reserved_peak: u64,
}

/// Operations of libtorch that compute, and call no other that does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Operations {
    /// Matrix products and attentions.
    pub(crate) products: u64,
    /// All others.
    pub(crate) others: u64,
    /// Bytes that the others read and write.
    pub(crate) bytes: u64,
    /// Floating-point operations of the products: two for each multiplication.
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "compared with the library's formulas in tests")
    )]
    pub(crate) flops: u64,
}

/// A CUDA event in the device's stream; on the CPU, a point in time.
pub(crate) struct Mark {
    device: Device,
    at: Instant,
    event: *mut c_void,
}

#[allow(unsafe_code)]
fn check(error: *const c_char) -> anyhow::Result<()> {
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns a thread-local text, valid until the thread's next call.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy();
    bail!("libtorch: {}", text.lines().next().unwrap_or_default())
}

fn index(device: Device) -> Option<i8> {
    match device {
        Device::Cuda(index) => i8::try_from(index).ok(),
        _ => None,
    }
}

/// Returns the dtype that a run of `kind` computes in: f32 on a CPU, where bf16 units are rare.
pub(crate) fn computed_in(device: Device, kind: Kind) -> Kind {
    if device == Device::Cpu { Kind::Float } else { kind }
}

/// Returns the compute capability of a CUDA device, `None` for other devices.
pub(crate) fn capability(device: Device) -> anyhow::Result<Option<(i32, i32)>> {
    let Device::Cuda(index) = device else { return Ok(None) };
    let driver = Driver::find()?;
    Ok(driver.and_then(|driver| driver.devices.get(index).map(|device| device.capability)))
}

/// Returns, for convolutions and for matrix products of f32, `true` if TF32 (10 bits of mantissa) is allowed.
#[allow(unsafe_code)]
pub(crate) fn tf32() -> anyhow::Result<(bool, bool)> {
    let (mut convolutions, mut products) = (false, false);
    // SAFETY: both outlive the call.
    check(unsafe { shim::kit_tf32(&raw mut convolutions, &raw mut products) })?;
    Ok((convolutions, products))
}

/// Allows or forbids TF32 in f32 convolutions and matrix products, for the whole program.
#[allow(unsafe_code)]
pub(crate) fn set_tf32(convolutions: bool, products: bool) -> anyhow::Result<()> {
    // SAFETY: it only takes two values.
    check(unsafe { shim::kit_set_tf32(convolutions, products) })
}

/// Waits for all work on a device.
#[allow(unsafe_code)]
pub(crate) fn synchronize(device: Device) -> anyhow::Result<()> {
    // SAFETY: it only takes a number.
    index(device).map_or(Ok(()), |index| check(unsafe { shim::kit_synchronize(index) }))
}

/// Returns the allocator statistics of a CUDA device, `None` for other devices.
#[allow(unsafe_code)]
pub(crate) fn account(device: Device) -> anyhow::Result<Option<Account>> {
    let Some(index) = index(device) else { return Ok(None) };
    let mut numbers = [0_i64; 4];
    // SAFETY: the shim writes four numbers.
    check(unsafe { shim::kit_memory(index, numbers.as_mut_ptr()) })?;
    let [allocated, peak, reserved_peak] = numbers.map(i64::unsigned_abs);
    Ok(Some(Account {
        allocated,
        peak,
        reserved_peak,
    }))
}

/// Resets the allocator's peaks to the current values.
#[allow(unsafe_code)]
pub(crate) fn reset_peak(device: Device) -> anyhow::Result<()> {
    // SAFETY: it only takes a number.
    index(device).map_or(Ok(()), |index| check(unsafe { shim::kit_reset_peak(index) }))
}

/// Releases the memory cached by a CUDA device's allocator.
#[allow(unsafe_code)]
pub(crate) fn empty_cache(device: Device) -> anyhow::Result<()> {
    // SAFETY: it takes no arguments.
    index(device).map_or(Ok(()), |_| check(unsafe { shim::kit_empty_cache() }))
}

/// Runs `work`, and returns the operations that it calls on this thread.
#[allow(unsafe_code)]
pub(crate) fn operations(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Operations> {
    // SAFETY: it takes no arguments.
    check(unsafe { shim::kit_count_begin() })?;
    let worked = work();
    let mut numbers = [0_i64; 3];
    // SAFETY: the shim writes three numbers.
    check(unsafe { shim::kit_count_end(numbers.as_mut_ptr()) })?;
    worked?;
    let [products, others, bytes, flops] = numbers.map(i64::unsigned_abs);
    Ok(Operations {
        products,
        others,
        bytes,
        flops,
    })
}

/// Returns `true` if the device still computes: after some errors a CUDA program can only exit.
pub(crate) fn works(device: Device) -> bool {
    let sum = || -> anyhow::Result<f64> {
        Ok(Tensor::f_ones([32, 32], (Kind::Float, device))?
            .f_sum(Kind::Float)?
            .f_double_value(&[])?)
    };
    sum().is_ok_and(|sum| (sum - 1024.0).abs() < 1e-6)
}

impl Mark {
    /// Records a mark after all work submitted to the device so far.
    #[allow(unsafe_code)]
    pub(crate) fn now(device: Device) -> anyhow::Result<Self> {
        let mut mark = Self {
            device,
            at: Instant::now(),
            event: std::ptr::null_mut(),
        };
        if let Some(index) = index(device) {
            // SAFETY: the shim writes a handle, owned by this value from then on.
            check(unsafe { shim::kit_event_new(&raw mut mark.event) })?;
            // SAFETY: the handle is alive.
            check(unsafe { shim::kit_event_record(index, mark.event) })?;
        }
        Ok(mark)
    }

    /// Returns the milliseconds on the device from this mark to a later one; waits for the later one.
    #[allow(unsafe_code)]
    pub(crate) fn until(&self, later: &Self) -> anyhow::Result<f64> {
        if index(self.device).is_none() {
            return Ok((later.at - self.at).as_secs_f64() * 1e3);
        }
        let mut milliseconds = 0.0;
        // SAFETY: both handles are alive.
        check(unsafe { shim::kit_event_elapsed(self.event, later.event, &raw mut milliseconds) })?;
        Ok(milliseconds)
    }
}

impl Drop for Mark {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the handle is owned by this value, or null.
        unsafe { shim::kit_event_delete(self.event) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_precision_of_f32_is_set_and_told() {
        let before = tf32().expect("told");
        set_tf32(false, false).expect("set");
        assert_eq!(tf32().expect("told"), (false, false));
        set_tf32(before.0, before.1).expect("set");
        assert_eq!(tf32().expect("told"), before);
    }

    #[test]
    fn operations_are_counted_with_their_bytes_and_views_are_not() {
        let x = Tensor::ones([8, 16], (Kind::Float, Device::Cpu));
        let mut sum = Tensor::zeros([8, 16], (Kind::Float, Device::Cpu));
        let got = operations(|| {
            let square = x.f_transpose(0, 1)?.f_matmul(&x)?;
            drop(square.f_view([-1])?);
            // Reads two, writes one; a row that is repeated is read once.
            let _ = sum.f_add_(&x.f_narrow(0, 0, 1)?.f_expand([8, 16], false)?)?;
            drop(x.f_to_kind(Kind::Double)?);
            Ok(())
        });
        let expected = Operations {
            products: 1,
            others: 2,
            bytes: (512 + 64 + 512) + (512 + 1024),
            flops: 2 * 16 * 8 * 16,
        };
        assert_eq!(got.expect("counted"), expected);
    }

    #[test]
    fn marks_of_the_cpu_are_times_and_it_has_no_account() {
        let (a, b) = (
            Mark::now(Device::Cpu).expect("mark"),
            Mark::now(Device::Cpu).expect("mark"),
        );
        assert!(a.until(&b).expect("time") >= 0.0);
        assert_eq!(account(Device::Cpu).expect("told"), None);
        assert!(works(Device::Cpu));
    }

    /// An exception in a program without libtorch's CUDA libraries is returned as an error.
    #[test]
    fn an_exception_of_libtorch_is_an_error() {
        if kontext_device::device::available(Device::Cuda(0)).is_ok() {
            println!("skipped: this machine has a CUDA device");
            return;
        }
        let error = Mark::now(Device::Cuda(0)).err().expect("no such device").to_string();
        assert!(error.starts_with("libtorch: "), "{error}");
    }
}
