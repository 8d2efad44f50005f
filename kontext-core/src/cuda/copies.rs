//! Copies to a CUDA device beside what it computes.
//!
//! Each buffer has two events. `used` stands behind the last work that reads it, on libtorch's stream; the copy into it
//! waits for that. `arrived` stands behind the copy, on a stream of its own; work that reads it waits for that, and so
//! does the host before it writes to the pinned memory that the copy reads. An event that was never recorded is waited
//! for by nobody. A copy never runs before its event is recorded, nor does a buffer go before the copies have ended.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};

use super::{Runtime, Status};
use crate::prefetch::{BUFFERS, Mover};
use crate::{Error, Result};

/// `cudaStream_t` and `cudaEvent_t`: handles of the runtime, which any thread may use.
type Stream = *mut c_void;
type Event = *mut c_void;

/// `cudaStreamNonBlocking`: it does not wait for the default stream, nor that for it.
const NON_BLOCKING: c_uint = 1;
/// `cudaEventDisableTiming`.
const NO_TIMING: c_uint = 2;
/// `cudaMemcpyHostToDevice`.
const HOST_TO_DEVICE: c_int = 1;

/// Functions of the runtime, and the one of libtorch that tells its stream. Sources: CUDA 13.0 `cuda_runtime_api.h`,
/// pytorch v2.11.0 `torch/csrc/inductor/aoti_torch/c/shim.h`.
#[derive(Debug)]
struct Functions {
    runtime: Runtime,
    get_device: unsafe extern "C" fn(*mut c_int) -> Status,
    stream_create: unsafe extern "C" fn(*mut Stream, c_uint) -> Status,
    stream_destroy: unsafe extern "C" fn(Stream) -> Status,
    stream_synchronize: unsafe extern "C" fn(Stream) -> Status,
    stream_wait_event: unsafe extern "C" fn(Stream, Event, c_uint) -> Status,
    event_create: unsafe extern "C" fn(*mut Event, c_uint) -> Status,
    event_destroy: unsafe extern "C" fn(Event) -> Status,
    event_record: unsafe extern "C" fn(Event, Stream) -> Status,
    event_synchronize: unsafe extern "C" fn(Event) -> Status,
    memcpy_async: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, Stream) -> Status,
    current_stream: unsafe extern "C" fn(i32, *mut Stream) -> i32,
}

/// Copies through pinned memory, on a stream of its own. It is made and used on one thread.
pub(crate) struct Copies {
    functions: &'static Functions,
    stream: Stream,
    index: c_int,
    capacity: usize,
}

/// Memory on the device, memory on the host that copies to it read, and what tells how far both are.
pub(crate) struct Buffer {
    functions: &'static Functions,
    index: c_int,
    /// u8 \[capacity\] on the device.
    bytes: Tensor,
    /// u8 \[capacity\], pinned.
    pinned: Tensor,
    used: Event,
    arrived: Event,
}

// SAFETY: the events are handles that any thread may use, and the tensors are `Send`; a buffer has one owner at a time.
#[allow(unsafe_code)]
unsafe impl Send for Buffer {}

fn functions() -> Result<&'static Functions, &'static str> {
    static FUNCTIONS: OnceLock<Result<Functions, String>> = OnceLock::new();
    FUNCTIONS.get_or_init(Functions::find).as_ref().map_err(String::as_str)
}

impl Functions {
    #[cfg(unix)]
    #[allow(unsafe_code)]
    fn find() -> Result<Self, String> {
        let all = libloading::os::unix::Library::this();
        let runtime = Runtime::of(&all)?;
        let absent = |error: libloading::Error| format!("a function of CUDA is missing ({error})");
        // SAFETY: these are the functions' types in the headers named above; the libraries that they are in were
        // opened for libtorch and are never closed.
        unsafe {
            Ok(Self {
                runtime,
                get_device: *all.get(b"cudaGetDevice\0").map_err(absent)?,
                stream_create: *all.get(b"cudaStreamCreateWithFlags\0").map_err(absent)?,
                stream_destroy: *all.get(b"cudaStreamDestroy\0").map_err(absent)?,
                stream_synchronize: *all.get(b"cudaStreamSynchronize\0").map_err(absent)?,
                stream_wait_event: *all.get(b"cudaStreamWaitEvent\0").map_err(absent)?,
                event_create: *all.get(b"cudaEventCreateWithFlags\0").map_err(absent)?,
                event_destroy: *all.get(b"cudaEventDestroy\0").map_err(absent)?,
                event_record: *all.get(b"cudaEventRecord\0").map_err(absent)?,
                event_synchronize: *all.get(b"cudaEventSynchronize\0").map_err(absent)?,
                memcpy_async: *all.get(b"cudaMemcpyAsync\0").map_err(absent)?,
                current_stream: *all.get(b"aoti_torch_get_current_cuda_stream\0").map_err(absent)?,
            })
        }
    }

    #[cfg(not(unix))]
    fn find() -> Result<Self, String> {
        Err("copies beside the computation are known on Unix alone".to_owned())
    }

    fn check(&self, index: c_int, function: &str, status: Status) -> Result<()> {
        self.runtime
            .check(function, status)
            .map_err(|reason| failed(index, reason))
    }

    /// libtorch's stream of this thread, where the device is the thread's own: the default stream's handle is null, and
    /// the runtime takes that for the default stream of the thread's device.
    #[allow(unsafe_code)]
    fn stream_of_libtorch(&self, index: c_int) -> Result<Stream> {
        let (mut own, mut stream) = (-1, ptr::null_mut());
        // SAFETY: both write to a place that outlives the call.
        let status = unsafe {
            self.check(index, "cudaGetDevice", (self.get_device)(&raw mut own))?;
            (self.current_stream)(index, &raw mut stream)
        };
        if own != index {
            return Err(failed(index, format!("this thread works on cuda:{own}")));
        }
        if status == 0 {
            Ok(stream)
        } else {
            Err(failed(index, "libtorch does not tell its stream".to_owned()))
        }
    }
}

fn failed(index: c_int, reason: String) -> Error {
    Error::Device {
        device: format!("cuda:{index}"),
        reason,
    }
}

impl Copies {
    /// For one device; it becomes that of the thread.
    #[allow(unsafe_code)]
    pub(crate) fn new(index: usize, capacity: usize) -> Result<Self> {
        let index = c_int::try_from(index).map_err(|error| failed(c_int::MAX, error.to_string()))?;
        let functions = functions().map_err(|reason| failed(index, reason.to_owned()))?;
        let mut stream = ptr::null_mut();
        // SAFETY: the first takes a number alone, the second writes to a place that outlives the call.
        unsafe {
            functions.check(index, "cudaSetDevice", (functions.runtime.set_device)(index))?;
            let status = (functions.stream_create)(&raw mut stream, NON_BLOCKING);
            functions.check(index, "cudaStreamCreateWithFlags", status)?;
        }
        Ok(Self {
            functions,
            stream,
            index,
            capacity,
        })
    }

    #[allow(unsafe_code)]
    fn event(&self) -> Result<Event> {
        let mut event = ptr::null_mut();
        // SAFETY: it writes to a place that outlives the call.
        let status = unsafe { (self.functions.event_create)(&raw mut event, NO_TIMING) };
        self.functions.check(self.index, "cudaEventCreateWithFlags", status)?;
        Ok(event)
    }

    fn buffer(&self) -> Result<Buffer> {
        let device = Device::Cuda(usize::try_from(self.index).unwrap_or_default());
        let bytes = Tensor::f_empty([self.capacity as i64], (Kind::Uint8, device))?;
        let pinned = Tensor::f_empty([self.capacity as i64], (Kind::Uint8, Device::Cpu))?;
        let pinned = pinned.f_internal_pin_memory(device)?;
        let (functions, index) = (self.functions, self.index);
        let mut buffer = Buffer {
            functions,
            index,
            bytes,
            pinned,
            used: ptr::null_mut(),
            arrived: ptr::null_mut(),
        };
        (buffer.used, buffer.arrived) = (self.event()?, self.event()?);
        // libtorch may have had this memory for something that it has queued.
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
        let (functions, index, count) = (self.functions, self.index, bytes.len());
        if count > self.capacity {
            return Err(Error::invalid(
                "weight",
                format!("at most {} bytes", self.capacity),
                count,
            ));
        }
        // SAFETY: the buffer is this call's alone. Its pinned memory has `capacity` bytes, no less than are copied, and
        // no copy reads it any longer once `arrived` has passed; nor does the ring's owner. The memory on the device is
        // as large, and the copy into it is queued behind `used`. Both stay until the stream is at its end.
        unsafe {
            functions.check(
                index,
                "cudaEventSynchronize",
                (functions.event_synchronize)(buffer.arrived),
            )?;
            ptr::copy_nonoverlapping(bytes.as_ptr(), buffer.pinned.data_ptr().cast::<u8>(), count);
            let status = (functions.stream_wait_event)(self.stream, buffer.used, 0);
            functions.check(index, "cudaStreamWaitEvent", status)?;
            let (to, from) = (buffer.bytes.data_ptr(), buffer.pinned.data_ptr());
            let status = (functions.memcpy_async)(to, from, count, HOST_TO_DEVICE, self.stream);
            functions.check(index, "cudaMemcpyAsync", status)?;
            functions.check(
                index,
                "cudaEventRecord",
                (functions.event_record)(buffer.arrived, self.stream),
            )
        }
    }

    #[allow(unsafe_code)]
    fn wait(buffer: &mut Buffer) -> Result<()> {
        let (functions, index) = (buffer.functions, buffer.index);
        let stream = functions.stream_of_libtorch(index)?;
        // Behind those that read it on other streams, too, so that `used` stands behind all of them.
        [buffer.arrived, buffer.used].into_iter().try_for_each(|event| {
            // SAFETY: both handles are alive.
            functions.check(index, "cudaStreamWaitEvent", unsafe {
                (functions.stream_wait_event)(stream, event, 0)
            })
        })
    }

    #[allow(unsafe_code)]
    fn release(buffer: &mut Buffer) -> Result<()> {
        let (functions, index) = (buffer.functions, buffer.index);
        let stream = functions.stream_of_libtorch(index)?;
        // SAFETY: both handles are alive.
        functions.check(index, "cudaEventRecord", unsafe {
            (functions.event_record)(buffer.used, stream)
        })
    }

    fn content(buffer: &Buffer) -> &Tensor {
        &buffer.bytes
    }
}

impl Drop for Copies {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the stream is this value's own. Errors have nobody to be told to; copies have ended in any case.
        unsafe {
            (self.functions.stream_synchronize)(self.stream);
            (self.functions.stream_destroy)(self.stream);
        }
    }
}

impl Drop for Buffer {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        for event in [self.used, self.arrived].into_iter().filter(|event| !event.is_null()) {
            // SAFETY: the event is this value's own, and is not used again.
            unsafe {
                (self.functions.event_destroy)(event);
            }
        }
    }
}
