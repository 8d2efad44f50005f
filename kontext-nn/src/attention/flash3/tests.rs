//! Tests with a library that is compiled here and registers the operator for CPU tensors, and with one that is given.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // In helper functions of tests.

use std::process::Command;
use std::sync::OnceLock;

use kontext_core::{Device, Kind, noise};
use libloading::os::unix::{Library, RTLD_LAZY};
use tempfile::TempDir;

use super::*;
use crate::attention::{Attention, AttentionBackend, AttentionKernel, attend_tokens};

/// Arguments of the operator.
const ARGUMENTS: u64 = 34;
/// Position of `q_descale`.
const Q_DESCALE: usize = 20;

/// One call of the operator, as the kernel saw it.
#[derive(Debug)]
struct Seen {
    kinds: Vec<Kind>,
    strides: Vec<i64>,
    /// Words of the arguments after those of the factors.
    rest: Vec<u64>,
}

static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());
/// Held by tests that look at `SEEN`.
static CALLING: Mutex<()> = Mutex::new(());

/// Compiles the library for a namespace; `None` without a C compiler.
fn compiled(namespace: &str) -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("_C.abi3.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/flash3/library.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&path)
        .arg(format!("-DNAMESPACE=\"{namespace}\""))
        .arg(source)
        .status();
    if status.is_err() {
        println!("skipped: there is no C compiler `cc`");
        return None;
    }
    assert!(status.unwrap().success());
    Some((folder, path))
}

/// The library of these tests, opened once, with `kernel` as its kernel.
fn library() -> Option<&'static Path> {
    static LIBRARY: OnceLock<Option<(TempDir, PathBuf)>> = OnceLock::new();
    let made = LIBRARY.get_or_init(|| {
        let (folder, path) = compiled("fa3_fwd")?;
        drop(Flash3::open(&path).unwrap());
        // SAFETY: the library is open already; its function takes the kernel's type, and keeps it.
        #[allow(unsafe_code)]
        unsafe {
            let library = Library::open(Some(&path), RTLD_LAZY).unwrap();
            let set = *library.get::<unsafe extern "C" fn(Kernel)>(b"set_kernel\0").unwrap();
            set(kernel);
            std::mem::forget(library);
        }
        Some((folder, path))
    });
    made.as_ref().map(|(_, path)| path.as_path())
}

type Kernel = unsafe extern "C" fn(*mut u64, u64, u64);

/// Takes over an argument that is a tensor.
#[allow(unsafe_code)]
unsafe fn tensor(word: u64) -> Tensor {
    // SAFETY: the word is a handle that the kernel owns.
    unsafe { Tensor::from_ptr(std::ptr::with_exposed_provenance_mut(word as usize)) }
}

/// Takes over an optional argument that is a tensor.
#[allow(unsafe_code)]
unsafe fn optional(word: u64) -> Option<Tensor> {
    let place: *mut u64 = std::ptr::with_exposed_provenance_mut(word as usize);
    // SAFETY: the word is null, or a pointer to a handle in memory of C++; the kernel owns both.
    unsafe {
        let inner = (!place.is_null()).then(|| *place)?;
        let free = *Library::this()
            .get::<unsafe extern "C" fn(*mut u64)>(b"_ZdlPv\0")
            .unwrap();
        free(place);
        Some(tensor(inner))
    }
}

/// A reference of the operator: attention in f32 of the values times their factors.
#[allow(unsafe_code)]
unsafe extern "C" fn kernel(stack: *mut u64, arguments: u64, results: u64) {
    assert_eq!((arguments, results), (ARGUMENTS, 4));
    // SAFETY: the stack has this many words.
    let stack = unsafe { std::slice::from_raw_parts_mut(stack, ARGUMENTS as usize) };
    assert!(stack[3..Q_DESCALE].iter().all(|word| *word == 0), "{stack:?}");
    // SAFETY: the schema says that these are tensors and optional tensors.
    let (heads, factors) = unsafe {
        let factor = |index: usize| optional(stack[Q_DESCALE + index]);
        ([0, 1, 2].map(|index| tensor(stack[index])), [0, 1, 2].map(factor))
    };
    let q = &heads[0];
    let kind = if q.kind() == Kind::Float8e4m3fn {
        Kind::BFloat16
    } else {
        q.kind()
    };
    lock(&SEEN).push(Seen {
        kinds: heads.iter().map(Tensor::kind).collect(),
        strides: q.stride(),
        rest: stack[Q_DESCALE + 3..].to_vec(),
    });
    let widened = |index: usize| {
        let x = heads[index].to_kind(Kind::Float);
        let x = match &factors[index] {
            Some(factor) => x * factor.unsqueeze(1).unsqueeze(3),
            None => x,
        };
        x.transpose(1, 2)
    };
    let mask = None::<Tensor>;
    let out =
        Tensor::scaled_dot_product_attention(&widened(0), &widened(1), &widened(2), mask, 0.0, false, None, false);
    let out = out.transpose(1, 2).contiguous().to_kind(kind);
    let nothing = || Tensor::zeros([0], (Kind::Float, Device::Cpu));
    for (word, mut result) in stack.iter_mut().zip([out, nothing(), nothing(), nothing()]) {
        *word = result.as_mut_ptr().expose_provenance() as u64;
        std::mem::forget(result);
    }
}

/// Queries of 5 tokens and keys of 7, as strided views of one projection.
fn heads(kind: Kind) -> [Tensor; 3] {
    let qkv = noise::randn(&[2, 7, 3, 4, 16], 0, Kind::Float, Device::Cpu)
        .unwrap()
        .to_kind(kind);
    let part = |index| qkv.select(2, index);
    [part(0).narrow(1, 0, 5), part(1), part(2)]
}

fn backend(choice: &Attention) -> AttentionBackend {
    let (Attention::Flash3 { library } | Attention::Flash3Fp8 { library }) = &choice else {
        panic!("{choice}")
    };
    AttentionBackend::of_library(choice.kernel().unwrap(), Flash3::open(library).unwrap())
}

fn relative(x: &Tensor, y: &Tensor) -> f64 {
    let (x, y) = (x.to_kind(Kind::Float), y.to_kind(Kind::Float));
    ((x - &y).norm() / y.norm()).double_value(&[])
}

#[test]
fn the_operator_gets_strided_heads_and_the_defaults_of_its_schema() {
    let Some(library) = library() else { return };
    let _calling = lock(&CALLING);
    let backend = backend(&Attention::Flash3 {
        library: library.to_owned(),
    });
    for kind in [Kind::Float, Kind::BFloat16] {
        let [q, k, v] = heads(kind);
        lock(&SEEN).clear();
        let out = backend.scope(|| attend_tokens(&q, &k, &v)).unwrap();
        let exact = attend_tokens(&q, &k, &v).unwrap();
        assert_eq!((out.size(), out.kind()), (vec![2, 5, 64], kind));
        let bound = if kind == Kind::Float { 1e-6 } else { 4e-3 };
        assert!(relative(&out, &exact) < bound);
        let seen = lock(&SEEN).pop().unwrap();
        assert_eq!((seen.kinds, seen.strides), (vec![kind; 3], q.stride()));
        // softmax_scale, is_causal, both windows, attention_chunk, softcap, is_rotary_interleaved,
        // scheduler_metadata, num_splits, pack_gqa, sm_margin.
        let window = (-1_i64).cast_unsigned();
        assert_eq!(seen.rest, [0, 0, window, window, 0, 0, 0, 0, 0, 0, 0]);
    }
    let [q, k, v] = heads(Kind::Float);
    let grad = backend.scope(|| attend_tokens(&q.set_requires_grad(true), &k, &v));
    assert!(grad.unwrap_err().to_string().contains("gradients"));
}

#[test]
fn heads_in_fp8_come_with_their_factors() {
    let Some(library) = library() else { return };
    let _calling = lock(&CALLING);
    let backend = backend(&Attention::Flash3Fp8 {
        library: library.to_owned(),
    });
    assert_eq!(backend.kernel(4, 16).unwrap(), AttentionKernel::Flash3Fp8);
    let [q, k, v] = heads(Kind::BFloat16);
    lock(&SEEN).clear();
    let out = backend.scope(|| attend_tokens(&q, &k, &v)).unwrap();
    assert_eq!(out.kind(), Kind::BFloat16);
    let error = relative(&out, &attend_tokens(&q, &k, &v).unwrap());
    assert!((1e-3..0.06).contains(&error), "{error}");
    assert_eq!(lock(&SEEN).pop().unwrap().kinds, [Kind::Float8e4m3fn; 3]);
}

#[test]
fn a_file_that_is_no_such_library_is_refused_with_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let schema = b"\x7fELF\0\0fwd(Tensor q,Tensor k,Tensor v) -> Tensor\0fa3_fwd\0";
    for (path, words) in [
        (write("empty.so", b""), "is not a shared library"),
        (write("garbage.so", b"#!/bin/sh\n"), "is not a shared library"),
        (
            write("other.so", &[b"\x7fELF".as_slice(), &[7; 3000]].concat()),
            "registers no operator",
        ),
        (write("broken.so", schema), "file too short"),
        (
            write("list.so", b"\x7fELF\0fwd(Tensor q,Tensor[] k) -> Tensor\0fa3_fwd\0"),
            "not supported",
        ),
    ] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let error = Flash3::open(&path).unwrap_err().to_string();
        assert!(
            error.starts_with("invalid attention: expected the library of FlashAttention-3"),
            "{error}"
        );
        assert!(error.contains(words) && error.contains(name), "{error}");
    }
    let missing = Flash3::open(&folder.path().join("missing.so")).unwrap_err();
    assert!(
        matches!(&missing, Error::Io { path, .. } if path.ends_with("missing.so")),
        "{missing:?}"
    );
}

#[test]
fn a_library_that_registers_nothing_is_not_opened() {
    let Some(file) = kontext_device::libtorch::loaded("libc10.so") else {
        println!("skipped: the files of libraries are known on Linux only");
        return;
    };
    let error = Flash3::open(&file).unwrap_err().to_string();
    assert!(
        error.contains("(registers no operator of it)") && error.contains("libc10.so"),
        "{error}"
    );
}

#[test]
fn the_operator_is_found_in_both_namespaces() {
    for namespace in NAMESPACES {
        let Some((_folder, path)) = compiled(namespace) else {
            return;
        };
        let schema = schema_in(&path).unwrap();
        assert!(
            schema.starts_with(&format!("{namespace}::fwd(Tensor q,Tensor k,")),
            "{schema}"
        );
        assert!(
            schema.ends_with("-> (Tensor(out!), Tensor, Tensor, Tensor)"),
            "{schema}"
        );
    }
}

#[test]
fn a_second_library_is_refused_and_the_first_opened_again() {
    let Some(library) = library() else { return };
    let Some((_folder, other)) = compiled("fa3_fwd") else {
        return;
    };
    let error = Flash3::open(&other).unwrap_err().to_string();
    assert!(error.contains("can use no second"), "{error}");
    assert!(Arc::ptr_eq(
        &Flash3::open(library).unwrap(),
        &Flash3::open(library).unwrap()
    ));
}

/// Opens the library that `KONTEXT_FLASH3` names, in a process of its own: this one has opened another.
#[test]
fn a_given_library_is_opened_and_has_no_kernel_for_a_cpu() {
    let Ok(given) = std::env::var("KONTEXT_FLASH3") else {
        println!("skipped: KONTEXT_FLASH3 names no library of FlashAttention-3");
        return;
    };
    const CHILD: &str = "KONTEXT_FLASH3_CHILD";
    if std::env::var(CHILD).is_err() {
        let name = "attention::flash3::tests::a_given_library_is_opened_and_has_no_kernel_for_a_cpu";
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let flash3 = Flash3::open(Path::new(&given)).unwrap();
    for name in ["q_descale", "k_descale", "v_descale"] {
        assert!(flash3.operator.has_parameter(name), "{name}");
    }
    let [q, k, v] = heads(Kind::BFloat16);
    assert!(matches!(flash3.attend(&q, &k, &v), Err(Error::Torch { .. })));
}
