//! The remedies for errors of other libraries.

use std::io;

use image::ImageError;

/// Replaces the message of a common I/O error with one that names the remedy.
pub(super) fn of_io(source: io::Error) -> io::Error {
    use io::ErrorKind as Kind;
    let words = match source.kind() {
        Kind::NotFound => "there is no such file or folder; check the path",
        Kind::PermissionDenied => "permission denied; check its owner and permissions",
        Kind::IsADirectory => "it is a folder, expected a file; name a file",
        Kind::NotADirectory => "a part of the path is a file, expected a folder; check the path",
        Kind::ReadOnlyFilesystem => "the file system is read-only; choose another folder",
        Kind::InvalidFilename => {
            "the name is too long, or has characters that the file system does not take; choose another"
        }
        Kind::OutOfMemory => "the system refuses the memory or address space for it; free some, or raise `ulimit -v`",
        Kind::StorageFull | Kind::QuotaExceeded => "the disk is full; free some space",
        Kind::UnexpectedEof | Kind::InvalidData => "its content is damaged; fetch it again",
        _ => return source,
    };
    io::Error::new(source.kind(), words)
}

/// Returns a decoder's or encoder's message and the remedy.
pub(super) fn of_image(error: &ImageError) -> String {
    let remedy = match error {
        ImageError::Unsupported(_) => "give a PNG, JPEG or WebP file",
        ImageError::Limits(_) => "make it smaller",
        ImageError::Decoding(_) | ImageError::IoError(_) => "the file is damaged, fetch or save it again",
        ImageError::Encoding(_) | ImageError::Parameter(_) => "choose another format or size",
    };
    // Some decoders break their lines or end in a full stop.
    let words = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}; {remedy}", words.trim_end_matches('.'))
}
