//! Broken files of weights, each with the whole message that it is refused with.
#![allow(clippy::unwrap_used)] // In helper functions of a test.

mod common;

use common::{Part, chain, described, entry, gguf_file, safetensors_file, text, with_header, written};
use kontext_core::Weights;

/// What a file is refused with, without its path.
fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = written(bytes);
    let message = chain(&Weights::open(&path).unwrap_err());
    message.strip_prefix(&format!("cannot load {}: ", path.display())).unwrap().to_owned()
}

const AGAIN: &str = "the file is truncated or damaged, fetch it again";

/// That a GGUF file is refused because of this.
#[track_caller]
fn gguf_refused(bytes: &[u8], reason: &str) {
    assert_eq!(refusal(bytes), format!("cannot use this GGUF file: {reason}"));
}

/// That a GGUF file is refused as damaged.
#[track_caller]
fn gguf_damaged(bytes: &[u8], reason: &str) {
    gguf_refused(bytes, &format!("{reason}; {AGAIN}"));
}

/// A sound file: a text, and two tensors of 64 bytes each.
fn gguf() -> Vec<u8> {
    let entries = [entry("general.architecture", 8, &text("flux"))];
    let tensors = [described("a", &[4, 4], 0, 0), described("b", &[16], 0, 64)];
    gguf_file(3, &entries, &tensors, &[0; 128])
}

/// A file with this one tensor and 128 bytes of data, which begin at 96 where its name has one letter.
fn one(tensor: Vec<u8>) -> Vec<u8> {
    gguf_file(3, &[], &[tensor], &[0; 128])
}

/// A file with two tensors.
fn two(first: Vec<u8>, second: Vec<u8>) -> Vec<u8> {
    gguf_file(3, &[], &[first, second], &[0; 128])
}

#[test]
fn a_gguf_file_that_is_cut_tells_what_it_lacks() {
    let whole = gguf();
    assert_eq!(whole.len(), 288);
    gguf_damaged(&whole[..6], "its version would take 4 bytes, 2 are left");
    gguf_damaged(&whole[..12], "tensors would take 8 bytes, 4 are left");
    gguf_damaged(&whole[..40], "it would have 2 tensors, its size allows 0");
    gguf_damaged(&whole[..88], "a name in the metadata would take 20 bytes, 8 are left");
    gguf_damaged(&whole[..287], "tensor `b` would end at 288, the file has 287 bytes");
    gguf_damaged(&whole[..160], "tensor `a` would end at 224, the file has 160 bytes");
}
