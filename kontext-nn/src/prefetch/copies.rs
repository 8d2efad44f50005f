//! Copies to a CUDA device that overlap with its computation.
//!
//! Each buffer has two events. `used` is recorded after the last work that reads it, on libtorch's stream; the copy into it
//! waits for that. `arrived` is recorded after the copy, on a stream of its own; work that reads the buffer waits for it,
//! and so does the host before it writes to the pinned memory that the copy reads. A copy never runs before its event is
//! recorded, and a buffer is dropped only after its copies have ended.

use kontext_core::{Error, Result};
use kontext_device::cuda::{Event, Stream};
use tch::{Device, Kind, Tensor};

use super::BUFFERS;
use super::ring::Mover;

/// A mover that copies through pinned memory, on a stream of its own. It is made and used on one thread.
pub(crate) struct Copies {
    stream: Stream,
    index: usize,
    capacity: usize,
}

/// Memory on the device, pinned memory on the host, and the events of both.
pub(crate) struct Buffer {
    /// u8 \[capacity\] on the device.
    bytes: Tensor,
    /// u8 \[capacity\], pinned.
    pinned: Tensor,
    used: Event,
    arrived: Event,
}

impl Copies {
    /// Copies of at most `capacity` bytes to one device, which becomes the thread's current one.
    pub(crate) fn new(index: usize, capacity: usize) -> Result<Self> {
        Ok(Self {
            stream: Stream::new(index)?,
            index,
            capacity,
        })
    }

    fn buffer(&self) -> Result<Buffer> {
        let device = Device::Cuda(self.index);
        let bytes = Tensor::f_empty([self.capacity as i64], (Kind::Uint8, device))?;
        let pinned = Tensor::f_empty([self.capacity as i64], (Kind::Uint8, Device::Cpu))?;
        let mut buffer = Buffer {
            bytes,
            pinned: pinned.f_internal_pin_memory(device)?,
            used: self.stream.event()?,
            arrived: self.stream.event()?,
        };
        // libtorch may have lent this memory to work that it has queued.
        Self::release(&mut buffer)?;
        Ok(buffer)
    }
}

impl Mover for Copies {
    type Buffer = Buffer;

    fn buffers(&mut self) -> Result<Vec<Buffer>> {
        (0..BUFFERS).map(|_| self.buffer()).collect()
    }

    #[allow(unsafe_code)]
    fn begin(&mut self, bytes: &[u8], buffer: &mut Buffer) -> Result<()> {
        let count = bytes.len();
        if count > self.capacity {
            return Err(Error::bug(format!(
                "a weight of {count} bytes for a buffer of {}",
                self.capacity
            )));
        }
        buffer.arrived.synchronize()?;
        // SAFETY: the buffer is this call's only. Its pinned memory has `capacity` bytes, no less than are copied, and no
        // copy reads it any longer now that `arrived` has passed; nor does the ring's owner.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.pinned.data_ptr().cast::<u8>(), count);
        }
        self.stream.wait(&buffer.used)?;
        // SAFETY: both have `capacity` bytes. The buffer is kept until the stream has ended, and nothing writes to its
        // pinned memory or reads its bytes before `arrived` has passed.
        unsafe { self.stream.copy(&buffer.pinned, &buffer.bytes, count)? };
        self.stream.record(&buffer.arrived)
    }

    fn wait(buffer: &mut Buffer) -> Result<()> {
        buffer.arrived.hold_libtorch()?;
        // Also after those that read it on other streams, so that the next `used` is recorded after all of them.
        buffer.used.hold_libtorch()
    }

    fn release(buffer: &mut Buffer) -> Result<()> {
        buffer.used.record_after_libtorch()
    }

    fn content(buffer: &Buffer) -> &Tensor {
        &buffer.bytes
    }
}
