//! Errors of libtorch.

use tch::TchError;

/// libtorch's error message, without the C++ stack trace appended to it.
#[derive(Debug)]
pub struct TorchError {
    message: String,
}

impl std::fmt::Display for TorchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for TorchError {}

impl TorchError {
    pub(super) fn new(source: TchError) -> Self {
        let text = match source {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        let message = text.lines().next().unwrap_or("unknown error").trim().to_owned();
        Self { message }
    }

    /// Returns `true` if the system or the device refused memory.
    pub(super) fn is_shortage(&self) -> bool {
        let message = self.message.to_ascii_lowercase();
        // oneDNN says so for lack of memory; a primitive that does not exist already fails at its descriptor.
        let primitive = "could not create a primitive";
        let of_onednn = message
            .split(primitive)
            .skip(1)
            .any(|rest| !rest.starts_with(" descriptor"));
        of_onednn || SHORTAGES.iter().any(|words| message.contains(words))
    }
}

/// Words of libtorch and its libraries, in lower case, for memory that the system or a device refused: the
/// allocators of CUDA and of CPUs, C++, oneDNN, cuBLAS and cuDNN.
const SHORTAGES: [&str; 6] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "could not create a memory object",
    "status_alloc_failed",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_librarys_words_for_a_shortage_are_recognised() {
        let error = |words: &str| TorchError::new(TchError::Torch(words.to_owned()));
        for words in [
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
            "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried",
            "std::bad_alloc",
            "could not create a primitive",
            "could not create a memory object",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        ] {
            assert!(error(words).is_shortage(), "{words}");
        }
        for words in [
            "could not create a primitive descriptor for a matmul primitive",
            "shape '[2, 2]' is invalid for input of size 3",
        ] {
            assert!(!error(words).is_shortage(), "{words}");
        }
    }
}
