//! The emulator as a target of launches.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::ptr;
use std::sync::Mutex;

use kontext_core::{Device, Error, Result, lock};
use kontext_kernels::{Call, Kernel, KernelShape, Launch};

use crate::ffi::{self, CBuffer, CLaunch, CReport};
use crate::variants::{FAULTS, FAULTY_SHAPE, Fault, SHAPES};

/// The order in which threads and blocks run. A correct kernel gives the same bits in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// From the first to the last.
    #[default]
    Forward,
    /// From the last to the first.
    Backward,
    /// Shuffled by a seed, each block in its own way.
    Shuffled(u32),
}

/// Launches of a kernel, and the bytes that its threads read and wrote; what several threads read counts for
/// each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Account {
    /// Launches.
    pub launches: u64,
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
}

/// A target of launches on CPU tensors, for the shapes in [`SHAPES`].
#[derive(Debug, Default)]
pub struct Emulator {
    order: Order,
    fault: Option<Fault>,
    accounts: Mutex<BTreeMap<Kernel, Account>>,
}

impl Emulator {
    /// Makes an emulator that runs threads and blocks in an order.
    #[must_use]
    pub fn new(order: Order) -> Self {
        Self {
            order,
            ..Self::default()
        }
    }

    /// Makes an emulator of the text with a planted fault, for [`FAULTY_SHAPE`] only.
    #[must_use]
    pub fn faulty(fault: Fault, order: Order) -> Self {
        Self {
            order,
            fault: Some(fault),
            accounts: Mutex::default(),
        }
    }

    /// Returns the accounts since the last call, and begins at zero.
    pub fn take(&self) -> BTreeMap<Kernel, Account> {
        std::mem::take(&mut *lock(&self.accounts))
    }

    /// Returns the index of the compiled variant.
    fn variant(&self, shape: &KernelShape) -> Result<usize> {
        let sizes = [shape.width(), shape.head_dim(), shape.mlp_width()];
        let found = match self.fault {
            None => SHAPES.iter().position(|shape| *shape == sizes),
            Some(fault) => FAULTS
                .iter()
                .position(|other| *other == fault && sizes == FAULTY_SHAPE)
                .map(|index| SHAPES.len() + index),
        };
        found.ok_or_else(|| {
            let expected = format!("one of {SHAPES:?}; add it to tests/emulator/src/variants.rs");
            Error::invalid("shape", expected, format!("{sizes:?}"))
        })
    }
}

impl Launch for Emulator {
    fn device(&self) -> Device {
        Device::Cpu
    }

    fn has_fp8(&self) -> bool {
        true
    }

    fn launch(&self, mut call: Call<'_>) -> Result<()> {
        static MACHINE: Mutex<()> = Mutex::new(());
        let variant = self.variant(call.shape())?;
        let buffers: Vec<_> = call.buffers().iter().map(CBuffer::of).collect();
        let mut launch = CLaunch {
            kernels: ptr::null(),
            kernel: call.kernel().name().as_ptr(),
            grid: call.grid(),
            block: call.block(),
            arguments: call.arguments().as_mut_ptr(),
            buffers: buffers.as_ptr(),
            buffer_count: buffers.len(),
            order: match self.order {
                Order::Forward => 0,
                Order::Backward => 1,
                Order::Shuffled(seed) => seed.saturating_add(2),
            },
        };
        let mut report = CReport {
            wrong: [0; 400],
            bytes_read: 0,
            bytes_written: 0,
        };
        {
            let _one = lock(&MACHINE);
            ffi::launch(variant, &mut launch, &mut report);
        }
        let wrong = CStr::from_bytes_until_nul(&report.wrong).unwrap_or_default();
        if !wrong.is_empty() {
            return Err(Error::bug(format!(
                "kernel {}: {}",
                call.kernel(),
                wrong.to_string_lossy()
            )));
        }
        let mut accounts = lock(&self.accounts);
        let account = accounts.entry(call.kernel()).or_default();
        account.launches += 1;
        account.read += report.bytes_read;
        account.written += report.bytes_written;
        Ok(())
    }
}
