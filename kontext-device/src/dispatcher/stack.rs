//! Words of a call's stack, and who owns the memory that they point to.

use std::ffi::c_void;
use std::mem;

use kontext_core::Result;
use tch::{TchError, Tensor};

use super::functions::{Functions, Handle, Word};
use super::operator::Output;
use super::schema::Kind;

/// An argument on the way to the stack. Until it is released to the call, it owns its handle and its memory.
pub(super) struct Packed {
    functions: &'static Functions,
    word: Word,
    /// A handle that this value owns.
    tensor: Option<Handle>,
    /// Memory of C++ that holds the word of an optional value.
    boxed: Option<*mut Word>,
}

impl Packed {
    /// Packs a word: the bits of a number, or null.
    pub(super) fn word(functions: &'static Functions, word: Word) -> Self {
        Self {
            functions,
            word,
            tensor: None,
            boxed: None,
        }
    }

    /// Packs a new handle of a tensor.
    #[allow(unsafe_code)]
    pub(super) fn tensor(functions: &'static Functions, tensor: &Tensor) -> Result<Self> {
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: tch's pointer is an `at::Tensor *`, which is the handle; it is only read, and alive as long as
        // `tensor`. The function writes to a place that outlives the call.
        let status = unsafe { (functions.new_tensor)(tensor.as_ptr().cast_mut().cast(), &raw mut handle) };
        if status != 0 || handle.is_null() {
            return Err(TchError::Torch("a new handle of a tensor was refused".to_owned()).into());
        }
        Ok(Self {
            tensor: Some(handle),
            ..Self::word(functions, handle.expose_provenance() as Word)
        })
    }

    /// Puts the word into memory of C++, as the value of an optional parameter.
    #[allow(unsafe_code)]
    pub(super) fn boxed(mut self) -> Result<Self> {
        /// An imitation of `std::nothrow`, an empty object that is never read.
        static NOTHROW: u8 = 0;
        let nothrow: *const c_void = (&raw const NOTHROW).cast();
        // SAFETY: it returns memory for the word, or null.
        let place: *mut Word = unsafe { (self.functions.allocate)(mem::size_of::<Word>(), nothrow) }.cast();
        if place.is_null() {
            return Err(TchError::Torch("std::bad_alloc".to_owned()).into());
        }
        // SAFETY: the place is of a word's size, aligned for any number, and ours.
        unsafe { place.write(self.word) };
        self.boxed = Some(place);
        self.word = place.expose_provenance() as Word;
        Ok(self)
    }

    /// Returns the word, whose handle and memory now belong to the call.
    pub(super) fn release(mut self) -> Word {
        self.tensor = None;
        self.boxed = None;
        self.word
    }
}

impl Drop for Packed {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: both belong to this value, which is not used again; the memory is that of `allocate`.
        unsafe {
            if let Some(place) = self.boxed {
                (self.functions.free)(place.cast());
            }
            if let Some(handle) = self.tensor {
                (self.functions.delete_tensor)(handle);
            }
        }
    }
}

/// Unpacks a returned word. A tensor takes over its handle.
///
/// # Safety
/// The word is one that a successful call returned for this kind, and is unpacked once.
#[allow(unsafe_code)]
pub(super) unsafe fn unpack(word: Word, kind: Kind) -> Output {
    match kind {
        Kind::Tensor => {
            let handle: Handle = std::ptr::with_exposed_provenance_mut(word as usize);
            // SAFETY: the word is a handle that belongs to the caller: an `at::Tensor *` made by `new`, which tch
            // frees by `delete`.
            Output::Tensor(unsafe { Tensor::from_ptr(handle.cast()) })
        }
        Kind::Int => Output::Int(word.cast_signed()),
        Kind::Float => Output::Float(f64::from_bits(word)),
        // Only the lowest byte is written.
        Kind::Bool => Output::Bool(word & 0xff != 0),
        // A schema with such a result is refused.
        Kind::Other => Output::Int(0),
    }
}
