//! FlashAttention-3 from a library of the user, which registers its operator in libtorch when it is opened.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kontext_core::{Error, Result, lock};
use kontext_device::dispatcher::{Argument, Operator};
use tch::Tensor;

use super::fp8;
use super::operators::first;

/// Namespaces of the operator: that of PyPI's `fa3-fwd`, and that of flash-attention's own build.
const NAMESPACES: [&str; 2] = ["fa3_fwd", "flash_attn_3"];
/// Start of the text from which a library registers the operator.
const SCHEMA: &str = "fwd(Tensor q";
/// First bytes of a shared library of Linux.
const ELF: [u8; 4] = *b"\x7fELF";

/// An opened library. It stays open as long as the program runs.
#[derive(Debug)]
pub(super) struct Flash3 {
    path: PathBuf,
    operator: Operator,
}

impl Flash3 {
    /// Opens a library, once a program: a second one would register the same operator, on which libtorch ends the
    /// program.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, [`Error::InvalidArgument`] if it is not such a library, cannot be
    /// opened, or another one is open.
    pub(super) fn open(path: &Path) -> Result<Arc<Self>> {
        static OPENED: Mutex<Option<Arc<Flash3>>> = Mutex::new(None);
        let path = path.canonicalize().map_err(Error::io(path))?;
        let mut opened = lock(&OPENED);
        if let Some(same) = opened.as_ref().filter(|opened| opened.path == path) {
            return Ok(Arc::clone(same));
        }
        // SAFETY: the library registers its operator from this text when it is opened, and no other one is opened.
        #[allow(unsafe_code)]
        let operator = unsafe { Operator::new(&schema_in(&path)?) };
        let operator = operator.map_err(|error| refused(&path, &error.to_string()))?;
        if let Some(other) = &*opened {
            let reason = format!("this program has opened {} and can use no second", other.path.display());
            return Err(refused(&path, &reason));
        }
        open_library(&path).map_err(|reason| refused(&path, &reason))?;
        Ok(Arc::clone(opened.insert(Arc::new(Self { path, operator }))))
    }

    /// Computes attention in the heads' dtype.
    ///
    /// # Shapes
    /// `q` [B, L, H, D], `k` and `v` [B, S, H, D], of any strides; returns [B, L, H, D].
    pub(super) fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let [q, k, v] = [dense(q)?, dense(k)?, dense(v)?];
        self.call(&[
            ("q", Argument::Tensor(&q)),
            ("k", Argument::Tensor(&k)),
            ("v", Argument::Tensor(&v)),
        ])
    }

    /// Computes attention of heads that are rounded to fp8; shapes as [`Flash3::attend`]. The result is in bf16.
    pub(super) fn attend_fp8(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let [(q, q_factor), (k, k_factor), (v, v_factor)] = [fp8::quantise(q)?, fp8::quantise(k)?, fp8::quantise(v)?];
        self.call(&[
            ("q", Argument::Tensor(&q)),
            ("k", Argument::Tensor(&k)),
            ("v", Argument::Tensor(&v)),
            ("q_descale", Argument::Tensor(&q_factor)),
            ("k_descale", Argument::Tensor(&k_factor)),
            ("v_descale", Argument::Tensor(&v_factor)),
        ])
    }

    fn call(&self, arguments: &[(&str, Argument<'_>)]) -> Result<Tensor> {
        first(self.operator.call(arguments)?)
    }
}

/// Returns heads whose last size is dense, as the kernel takes them.
fn dense(x: &Tensor) -> Result<Tensor> {
    if x.stride().last() == Some(&1) {
        Ok(x.shallow_clone())
    } else {
        Ok(x.f_contiguous()?)
    }
}

/// Returns the schema of a library's operator, with its namespace. The text is in the library's file, so a file without
/// it is never opened, which would run its initialisers.
fn schema_in(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path))?;
    let (mut reader, mut text) = (BufReader::with_capacity(1 << 20, file), Vec::new());
    let mut start = [0; ELF.len()];
    let read = reader.by_ref().take(4).read(&mut start).map_err(Error::io(path))?;
    if start.get(..read) != Some(&ELF) {
        return Err(refused(path, "is not a shared library of Linux"));
    }
    let (mut schema, mut namespace) = (None, None);
    while reader.read_until(0, &mut text).map_err(Error::io(path))? > 0 {
        text.pop_if(|last| *last == 0);
        if text.starts_with(SCHEMA.as_bytes()) {
            schema = schema.or_else(|| String::from_utf8(text.clone()).ok());
        }
        namespace = namespace.or_else(|| NAMESPACES.iter().find(|name| name.as_bytes() == text));
        text.clear();
    }
    match (schema, namespace) {
        (Some(schema), Some(namespace)) => Ok(format!("{namespace}::{schema}")),
        _ => Err(refused(path, "registers no operator of it")),
    }
}

fn refused(path: &Path, reason: &str) -> Error {
    let expected = "the library of FlashAttention-3 for libtorch's stable interface, such as `fa3_fwd/_C.abi3.so` of \
                    PyPI's `fa3-fwd`";
    Error::invalid("attention", expected, format!("{} ({reason})", path.display()))
}

/// Opens a library. Its functions are looked up at their first call, because those of Python, for which its module is
/// made, are missing.
#[cfg(unix)]
#[allow(unsafe_code)]
fn open_library(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
    // SAFETY: opening runs the initialisers of a library that registers FlashAttention-3 in the libtorch of this
    // program through its stable interface; the user has named it, and it is never closed.
    let library = unsafe { Library::open(Some(path), RTLD_LAZY | RTLD_LOCAL) }.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        cause.unwrap_or_else(|| error.to_string())
    })?;
    std::mem::forget(library);
    Ok(())
}

#[cfg(not(unix))]
fn open_library(_: &Path) -> Result<(), String> {
    Err("is used on Linux only".to_owned())
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
