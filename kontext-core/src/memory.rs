//! Memory that was freed, back to the system.

/// Gives memory that the program has freed back to the system, where the allocator keeps it for later.
///
/// Loading a part converts and rearranges its weights; the gaps that this leaves in the heap add up to as much as the
/// part itself (0.26 GB for the autoencoder of FLUX.1) and fit little that comes later. Does nothing where the C library
/// is not glibc.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    trim();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
fn trim() {
    // SAFETY: it touches only pages of the heap that hold nothing, under the allocator's own locks.
    let _ = unsafe { libc::malloc_trim(0) };
}
