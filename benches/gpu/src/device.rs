//! Time, memory and precision of a device, as libtorch has them; on the CPU the clock alone.

use std::ffi::{CStr, c_char, c_void};
use std::time::Instant;

use anyhow::bail;
use kontext::{Device, Kind, Tensor};

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
        pub(super) fn kit_event_new(event: *mut *mut c_void) -> *const c_char;
        pub(super) fn kit_event_delete(event: *mut c_void);
        pub(super) fn kit_event_record(index: i8, event: *mut c_void) -> *const c_char;
        pub(super) fn kit_event_elapsed(begin: *mut c_void, end: *mut c_void, milliseconds: *mut f64) -> *const c_char;
    }
}

/// The account of a CUDA device's allocator, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Account {
    /// Of tensors, now.
    pub(crate) allocated: u64,
    /// Of tensors, at most since [`reset_peak`].
    pub(crate) peak: u64,
    /// Of the device, with what it keeps for later, at most since [`reset_peak`].
    pub(crate) reserved_peak: u64,
}

/// A place in a device's queue of work; on the CPU, a time.
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
    // SAFETY: the shim returns a text of this thread that stays until its next call.
    let text = unsafe { CStr::from_ptr(error) }.to_string_lossy();
    bail!("libtorch: {}", text.lines().next().unwrap_or_default())
}

fn index(device: Device) -> Option<i8> {
    match device {
        Device::Cuda(index) => i8::try_from(index).ok(),
        _ => None,
    }
}

/// The kind that a run of `kind` computes in: f32 on a CPU, whose bf16 units are rare.
pub(crate) fn computed_in(device: Device, kind: Kind) -> Kind {
    if device == Device::Cpu { Kind::Float } else { kind }
}

/// Tells if f32 convolutions and matrix products may be computed in TF32 (10 bits of mantissa).
#[allow(unsafe_code)]
pub(crate) fn tf32() -> anyhow::Result<(bool, bool)> {
    let (mut convolutions, mut products) = (false, false);
    // SAFETY: both outlive the call.
    check(unsafe { shim::kit_tf32(&raw mut convolutions, &raw mut products) })?;
    Ok((convolutions, products))
}

/// Sets what [`tf32`] returns, for the whole program.
#[allow(unsafe_code)]
pub(crate) fn set_tf32(convolutions: bool, products: bool) -> anyhow::Result<()> {
    // SAFETY: it takes two values alone.
    check(unsafe { shim::kit_set_tf32(convolutions, products) })
}

/// Waits for all work of a device.
#[allow(unsafe_code)]
pub(crate) fn synchronize(device: Device) -> anyhow::Result<()> {
    // SAFETY: it takes a number alone.
    index(device).map_or(Ok(()), |index| check(unsafe { shim::kit_synchronize(index) }))
}

/// The allocator's account of a CUDA device; `None` for others.
#[allow(unsafe_code)]
pub(crate) fn account(device: Device) -> anyhow::Result<Option<Account>> {
    let Some(index) = index(device) else { return Ok(None) };
    let mut numbers = [0_i64; 3];
    // SAFETY: the shim writes three numbers.
    check(unsafe { shim::kit_memory(index, numbers.as_mut_ptr()) })?;
    let [allocated, peak, reserved_peak] = numbers.map(i64::unsigned_abs);
    Ok(Some(Account {
        allocated,
        peak,
        reserved_peak,
    }))
}

/// Resets the account's peaks to the bytes that are held now.
#[allow(unsafe_code)]
pub(crate) fn reset_peak(device: Device) -> anyhow::Result<()> {
    // SAFETY: it takes a number alone.
    index(device).map_or(Ok(()), |index| check(unsafe { shim::kit_reset_peak(index) }))
}

/// Gives back what the allocator of a CUDA device keeps for later.
#[allow(unsafe_code)]
pub(crate) fn empty_cache(device: Device) -> anyhow::Result<()> {
    // SAFETY: it takes nothing.
    index(device).map_or(Ok(()), |_| check(unsafe { shim::kit_empty_cache() }))
}

/// Makes sure that a device still works: after some errors a CUDA program can only end.
pub(crate) fn works(device: Device) -> bool {
    let sum = || -> anyhow::Result<f64> {
        Ok(Tensor::f_ones([32, 32], (Kind::Float, device))?
            .f_sum(Kind::Float)?
            .f_double_value(&[])?)
    };
    sum().is_ok_and(|sum| (sum - 1024.0).abs() < 1e-6)
}

impl Mark {
    /// A mark after all work that was given to the device so far.
    #[allow(unsafe_code)]
    pub(crate) fn now(device: Device) -> anyhow::Result<Self> {
        let mut mark = Self {
            device,
            at: Instant::now(),
            event: std::ptr::null_mut(),
        };
        if let Some(index) = index(device) {
            // SAFETY: the shim writes a handle that is this value's own from then on.
            check(unsafe { shim::kit_event_new(&raw mut mark.event) })?;
            // SAFETY: the handle is alive.
            check(unsafe { shim::kit_event_record(index, mark.event) })?;
        }
        Ok(mark)
    }

    /// Milliseconds of the device from this mark to a later one; waits for the later one.
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
        // SAFETY: the handle is this value's own, or null.
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
    fn marks_of_the_cpu_are_times_and_it_has_no_account() {
        let (a, b) = (
            Mark::now(Device::Cpu).expect("mark"),
            Mark::now(Device::Cpu).expect("mark"),
        );
        assert!(a.until(&b).expect("time") >= 0.0);
        assert_eq!(account(Device::Cpu).expect("told"), None);
        assert!(works(Device::Cpu));
    }

    /// The shim throws where the program has no CUDA half, and the error comes back as one.
    #[test]
    fn an_exception_of_libtorch_is_an_error() {
        if kontext_core::device::available(Device::Cuda(0)).is_ok() {
            println!("skipped: this machine has a CUDA device");
            return;
        }
        let error = Mark::now(Device::Cuda(0)).err().expect("no such device").to_string();
        assert!(error.starts_with("libtorch: "), "{error}");
    }
}
