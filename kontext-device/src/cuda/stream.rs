//! Streams next to libtorch's, and events that order work between them.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::OnceLock;

use kontext_core::{Error, Result};
use tch::Tensor;

use super::runtime::{Runtime, Status};

/// `cudaStream_t`, a handle of the runtime that any thread may use.
pub(super) type StreamHandle = *mut c_void;
/// `cudaEvent_t`, likewise.
type EventHandle = *mut c_void;

/// `cudaStreamNonBlocking`: the stream and the default stream do not wait for each other.
const NON_BLOCKING: c_uint = 1;
/// `cudaEventDisableTiming`.
const NO_TIMING: c_uint = 2;
/// `cudaMemcpyHostToDevice`.
const HOST_TO_DEVICE: c_int = 1;
/// `cudaErrorNotReady`.
const NOT_READY: Status = 600;

/// Functions of the runtime, and the one of libtorch that returns its stream. Sources: CUDA 13.0 `cuda_runtime_api.h`,
/// pytorch v2.11.0 `torch/csrc/inductor/aoti_torch/c/shim.h`.
#[derive(Debug)]
pub(super) struct Functions {
    runtime: Runtime,
    get_device: unsafe extern "C" fn(*mut c_int) -> Status,
    stream_create: unsafe extern "C" fn(*mut StreamHandle, c_uint) -> Status,
    stream_destroy: unsafe extern "C" fn(StreamHandle) -> Status,
    stream_synchronize: unsafe extern "C" fn(StreamHandle) -> Status,
    stream_wait_event: unsafe extern "C" fn(StreamHandle, EventHandle, c_uint) -> Status,
    event_create: unsafe extern "C" fn(*mut EventHandle, c_uint) -> Status,
    event_destroy: unsafe extern "C" fn(EventHandle) -> Status,
    event_record: unsafe extern "C" fn(EventHandle, StreamHandle) -> Status,
    event_synchronize: unsafe extern "C" fn(EventHandle) -> Status,
    event_query: unsafe extern "C" fn(EventHandle) -> Status,
    memcpy_async: unsafe extern "C" fn(*mut c_void, *const c_void, usize, c_int, StreamHandle) -> Status,
    current_stream: unsafe extern "C" fn(i32, *mut StreamHandle) -> i32,
}

pub(super) fn functions() -> Result<&'static Functions, &'static str> {
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
        // SAFETY: these are the functions' types in the headers named above; their libraries were opened for libtorch
        // and are never closed.
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
                event_query: *all.get(b"cudaEventQuery\0").map_err(absent)?,
                memcpy_async: *all.get(b"cudaMemcpyAsync\0").map_err(absent)?,
                current_stream: *all.get(b"aoti_torch_get_current_cuda_stream\0").map_err(absent)?,
            })
        }
    }

    #[cfg(not(unix))]
    fn find() -> Result<Self, String> {
        Err("streams are supported on Unix only".to_owned())
    }

    pub(super) fn check(&self, index: c_int, function: &str, status: Status) -> Result<()> {
        self.runtime
            .check(function, status)
            .map_err(|reason| failed(index, reason))
    }

    /// Calls `f` while the device is the thread's current one.
    #[allow(unsafe_code)]
    pub(super) fn on_device<T>(&self, index: c_int, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut own = -1;
        // SAFETY: it writes to a place that outlives the call.
        self.check(index, "cudaGetDevice", unsafe { (self.get_device)(&raw mut own) })?;
        if own == index {
            return f();
        }
        // SAFETY: it takes only a number.
        self.check(index, "cudaSetDevice", unsafe { (self.runtime.set_device)(index) })?;
        let done = f();
        // SAFETY: as above.
        self.check(index, "cudaSetDevice", unsafe { (self.runtime.set_device)(own) })?;
        done
    }

    /// libtorch's stream of this thread, if the device is the thread's current one: the default stream's handle is null,
    /// which the runtime takes for the default stream of the thread's device.
    #[allow(unsafe_code)]
    pub(super) fn stream_of_libtorch(&self, index: c_int) -> Result<StreamHandle> {
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
            Err(failed(index, "libtorch does not return its stream".to_owned()))
        }
    }
}

pub(super) fn failed(index: c_int, reason: String) -> Error {
    Error::Device {
        device: format!("cuda:{index}"),
        reason,
    }
}

/// A stream for copies, next to the one on which libtorch computes. It is used on the thread that made it.
pub struct Stream {
    functions: &'static Functions,
    handle: StreamHandle,
    index: c_int,
}

/// A point in a stream that other streams and the host can wait for. An event that was never recorded has passed.
pub struct Event {
    functions: &'static Functions,
    handle: EventHandle,
    index: c_int,
}

// SAFETY: an event is a handle of the runtime that any thread may use.
#[allow(unsafe_code)]
unsafe impl Send for Event {}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("device", &self.index)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Event")
            .field("device", &self.index)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// Makes a stream on a device, which becomes the thread's current one.
    ///
    /// # Errors
    /// [`Error::Device`] if libtorch's CUDA half is not loaded, or the runtime fails.
    #[allow(unsafe_code)]
    pub fn new(index: usize) -> Result<Self> {
        let index = c_int::try_from(index).map_err(|error| failed(c_int::MAX, error.to_string()))?;
        let functions = functions().map_err(|reason| failed(index, reason.to_owned()))?;
        let mut handle = ptr::null_mut();
        // SAFETY: the first takes a number only, the second writes to a place that outlives the call.
        unsafe {
            functions.check(index, "cudaSetDevice", (functions.runtime.set_device)(index))?;
            let status = (functions.stream_create)(&raw mut handle, NON_BLOCKING);
            functions.check(index, "cudaStreamCreateWithFlags", status)?;
        }
        Ok(Self {
            functions,
            handle,
            index,
        })
    }

    /// Makes an event on the stream's device.
    ///
    /// # Errors
    /// [`Error::Device`] if the runtime fails.
    #[allow(unsafe_code)]
    pub fn event(&self) -> Result<Event> {
        let mut handle = ptr::null_mut();
        // SAFETY: it writes to a place that outlives the call.
        let status = unsafe { (self.functions.event_create)(&raw mut handle, NO_TIMING) };
        self.functions.check(self.index, "cudaEventCreateWithFlags", status)?;
        Ok(Event {
            functions: self.functions,
            handle,
            index: self.index,
        })
    }

    /// Makes the work that is queued here from now on wait for an event.
    ///
    /// # Errors
    /// [`Error::Device`] if the runtime fails.
    #[allow(unsafe_code)]
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        let status = unsafe { (self.functions.stream_wait_event)(self.handle, event.handle, 0) };
        self.functions.check(self.index, "cudaStreamWaitEvent", status)
    }

    /// Records an event after all that is queued here so far.
    ///
    /// # Errors
    /// [`Error::Device`] if the runtime fails.
    #[allow(unsafe_code)]
    pub fn record(&self, event: &Event) -> Result<()> {
        // SAFETY: both handles are alive.
        let status = unsafe { (self.functions.event_record)(event.handle, self.handle) };
        self.functions.check(self.index, "cudaEventRecord", status)
    }

    /// Queues a copy of the first `count` bytes of `from`, pinned memory on the host, to `to` on the stream's device.
    ///
    /// # Errors
    /// [`Error::Device`] if the runtime fails.
    ///
    /// # Safety
    /// Both tensors are contiguous and have at least `count` bytes. Until an event that is recorded here afterwards has
    /// passed, both stay alive, nothing writes to `from`, and only work that waits for such an event uses `to`.
    #[allow(unsafe_code)]
    pub unsafe fn copy(&self, from: &Tensor, to: &Tensor, count: usize) -> Result<()> {
        // SAFETY: what the caller promises.
        let status = unsafe {
            (self.functions.memcpy_async)(to.data_ptr(), from.data_ptr(), count, HOST_TO_DEVICE, self.handle)
        };
        self.functions.check(self.index, "cudaMemcpyAsync", status)
    }
}

impl Event {
    /// Makes an event on a device and records it after all that libtorch has queued there on this thread's stream so far.
    ///
    /// # Errors
    /// [`Error::Device`] if libtorch's CUDA half is not loaded, or the runtime fails.
    #[allow(unsafe_code)]
    pub fn after_libtorch(index: usize) -> Result<Self> {
        let index = c_int::try_from(index).map_err(|error| failed(c_int::MAX, error.to_string()))?;
        let functions = functions().map_err(|reason| failed(index, reason.to_owned()))?;
        functions.on_device(index, || {
            let mut handle = ptr::null_mut();
            // SAFETY: it writes to a place that outlives the call.
            let status = unsafe { (functions.event_create)(&raw mut handle, NO_TIMING) };
            functions.check(index, "cudaEventCreateWithFlags", status)?;
            let event = Self {
                functions,
                handle,
                index,
            };
            event.record_after_libtorch()?;
            Ok(event)
        })
    }

    /// Returns `true` if the event has passed, without waiting for it.
    ///
    /// # Errors
    /// [`Error::Device`] if the runtime fails.
    #[allow(unsafe_code)]
    pub fn has_passed(&self) -> Result<bool> {
        // SAFETY: the handle is alive.
        let status = unsafe { (self.functions.event_query)(self.handle) };
        if status == NOT_READY {
            return Ok(false);
        }
        self.functions.check(self.index, "cudaEventQuery", status)?;
        Ok(true)
    }

    /// Blocks the host until the event has passed.
    ///
    /// # Errors
    /// [`Error::Device`] if the runtime fails.
    #[allow(unsafe_code)]
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the handle is alive.
        let status = unsafe { (self.functions.event_synchronize)(self.handle) };
        self.functions.check(self.index, "cudaEventSynchronize", status)
    }

    /// Records the event after all that libtorch has queued on this thread's stream so far.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is not the thread's current one, or the runtime fails.
    #[allow(unsafe_code)]
    pub fn record_after_libtorch(&self) -> Result<()> {
        let stream = self.functions.stream_of_libtorch(self.index)?;
        // SAFETY: both handles are alive.
        let status = unsafe { (self.functions.event_record)(self.handle, stream) };
        self.functions.check(self.index, "cudaEventRecord", status)
    }

    /// Makes the work that libtorch queues on this thread's stream from now on wait for the event.
    ///
    /// # Errors
    /// As [`Event::record_after_libtorch`].
    #[allow(unsafe_code)]
    pub fn hold_libtorch(&self) -> Result<()> {
        let stream = self.functions.stream_of_libtorch(self.index)?;
        // SAFETY: both handles are alive.
        let status = unsafe { (self.functions.stream_wait_event)(stream, self.handle, 0) };
        self.functions.check(self.index, "cudaStreamWaitEvent", status)
    }
}

impl Drop for Stream {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the stream is owned by this value. Errors cannot be reported here; the copies have ended in any case.
        unsafe {
            (self.functions.stream_synchronize)(self.handle);
            (self.functions.stream_destroy)(self.handle);
        }
    }
}

impl Drop for Event {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: the event is owned by this value, and is not used again.
        unsafe {
            (self.functions.event_destroy)(self.handle);
        }
    }
}
