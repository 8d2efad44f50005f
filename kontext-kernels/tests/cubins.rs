//! Every kernel compiled by NVRTC, without a GPU: no register is spilled, and as many blocks fit as intended.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::{FLUX, ODD, SMALL, shape};
use kontext_kernels::{Kernel, KernelShape, Nvrtc, options, source};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol};

/// A100, L4 and the 4090, H100 and H200, and the 5090: compute capabilities.
const ARCHITECTURES: [(i32, i32); 4] = [(8, 0), (8, 9), (9, 0), (12, 0)];

/// Registers of a multiprocessor, on all architectures.
const REGISTERS: u32 = 65_536;
/// A warp's registers are allocated in such units.
const UNIT: u32 = 256;

/// The compiler next to libtorch's libraries, or where `cargo xtask nvrtc` puts it. `None` if it is in neither place,
/// which in CI is a failure.
fn nvrtc() -> Option<Nvrtc> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.libtorch/nvidia/cu13/lib/libnvrtc.so.13");
    match Nvrtc::find().or_else(|_| Nvrtc::open(&fetched)) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if std::env::var_os("CI").is_some() => panic!("{error}"),
        Err(error) => {
            eprintln!("skipped: {error}; `cargo xtask nvrtc` fetches it");
            None
        }
    }
}

/// Resources of a kernel, from its cubin.
#[derive(Debug, PartialEq)]
struct Resources {
    /// Registers of a thread.
    registers: u32,
    /// Bytes of a thread's stack, which spilled registers are in.
    stack: u32,
    /// Bytes of a block's shared memory.
    shared: u64,
}

/// Codes of the attributes of `.nv.info`: a symbol's index and a number.
const FRAME_SIZE: u8 = 0x11;
const MIN_STACK_SIZE: u8 = 0x12;
const REGISTER_COUNT: u8 = 0x2f;

/// Reads the resources of a kernel; `None` if the cubin has no such kernel.
fn resources(cubin: &[u8], kernel: &str) -> Option<Resources> {
    let file = ElfFile64::<LittleEndian>::parse(cubin).unwrap();
    let text = file.section_by_name(&format!(".text.{kernel}"))?;
    let symbol = file.symbol_by_name(kernel).unwrap().index().0 as u32;
    let info = file.section_by_name(".nv.info").unwrap().data().unwrap();
    // Since ELF version 8 of cubins, the compiler's own reserved kilobyte of newer architectures is in a section, too.
    let shared = file.section_by_name(&format!(".nv.shared.{kernel}"));
    let found = Resources {
        registers: attribute(info, REGISTER_COUNT, symbol).unwrap(),
        stack: attribute(info, FRAME_SIZE, symbol).unwrap() + attribute(info, MIN_STACK_SIZE, symbol).unwrap(),
        shared: shared.map_or(0, |section| section.size()),
    };
    assert!(text.size() > 0);
    Some(found)
}

/// Returns the value of an attribute of a symbol. Attributes are a format, a code, a size, and the bytes; those of other
/// formats than 4 have none.
fn attribute(mut info: &[u8], code: u8, symbol: u32) -> Option<u32> {
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while let [format, of, size @ ..] = info {
        let length = if *format == 4 {
            usize::from(u16::from_le_bytes([size[0], size[1]]))
        } else {
            0
        };
        let value = &size[2..2 + length];
        if *of == code && length == 8 && number(&value[..4]) == symbol {
            return Some(number(&value[4..]));
        }
        info = &size[2 + length..];
    }
    None
}

/// Threads of a block of a kernel, as `Kernels` launches it.
fn threads(kernel: Kernel, shape: &KernelShape) -> u32 {
    let row = shape.width() / 8;
    let threads = match kernel {
        Kernel::GroupSums | Kernel::GroupNorm => 256,
        Kernel::GeluConcatFp8 => (row + shape.mlp_width() / 8).min(512),
        _ => row,
    };
    (threads as u32).next_multiple_of(32)
}

/// Blocks of a kernel that a multiprocessor has registers for.
fn blocks(registers: u32, threads: u32) -> u32 {
    let of_warp = (registers * 32).next_multiple_of(UNIT);
    REGISTERS / (of_warp * threads / 32)
}

fn compile(nvrtc: &Nvrtc, sizes: [i64; 3], architecture: (i32, i32)) -> Vec<u8> {
    nvrtc.compile(source(), &options(&shape(sizes), architecture)).unwrap()
}

/// Most registers of a thread for the given threads of a multiprocessor: a kernel that is bound by memory needs about
/// 1,000 threads of 16 bytes on their way. The quantised rows are held in registers, 32 values a thread.
fn most_registers(kernel: Kernel) -> u32 {
    match kernel {
        Kernel::GeluConcatFp8 | Kernel::QkNormRope => 56,
        Kernel::GroupSums => 48,
        _ => 40,
    }
}

#[test]
fn nothing_is_spilled_and_registers_leave_room_for_the_threads_that_memory_needs() {
    let Some(nvrtc) = nvrtc() else { return };
    for architecture in ARCHITECTURES {
        for sizes in [FLUX, SMALL, ODD] {
            let cubin = compile(&nvrtc, sizes, architecture);
            for kernel in Kernel::ALL {
                let found = resources(&cubin, &kernel.to_string());
                let of = format!("{kernel} of {sizes:?} on {architecture:?}: {found:?}");
                let Some(found) = found else {
                    // Left out where there is no conversion to e4m3.
                    assert!(kernel.needs_fp8() && architecture < (8, 9), "{of}");
                    continue;
                };
                assert!(!kernel.needs_fp8() || architecture >= (8, 9), "{of}");
                assert_eq!(found.stack, 0, "{of}");
                assert!(found.registers <= most_registers(kernel), "{of}");
                assert!(found.shared <= 20_000, "{of}");
                let threads = threads(kernel, &shape(sizes));
                let resident = blocks(found.registers, threads) * threads;
                assert!(resident >= 1024, "{of}: {resident} threads of a multiprocessor");
            }
        }
    }
}

/// The widest shape that there can be: a block of each kernel fits, and nothing is spilled.
#[test]
fn the_widest_blocks_fit() {
    let Some(nvrtc) = nvrtc() else { return };
    let widest = [KernelShape::WIDEST, 128, KernelShape::LONGEST - KernelShape::WIDEST];
    for architecture in [(8, 0), (9, 0)] {
        let cubin = compile(&nvrtc, widest, architecture);
        for kernel in Kernel::ALL {
            let Some(found) = resources(&cubin, &kernel.to_string()) else {
                assert!(architecture < (8, 9));
                continue;
            };
            assert_eq!(found.stack, 0, "{kernel}: {found:?}");
            assert!(
                blocks(found.registers, threads(kernel, &shape(widest))) >= 1,
                "{kernel}: {found:?}"
            );
        }
    }
}

/// The test sees a stack where there is one.
#[test]
fn spilled_registers_are_seen() {
    let Some(nvrtc) = nvrtc() else { return };
    let spilling = "extern \"C\" __global__ void __launch_bounds__(1024, 2) spilling(float *x) {
            float kept[96];
            for (int i = 0; i < 96; i++) kept[i] = x[i * 1024 + threadIdx.x];
            __syncthreads();
            for (int i = 0; i < 96; i++) x[i * 1024 + 1023 - threadIdx.x] = kept[i] * kept[(i * 7) % 96];
        }";
    let cubin = nvrtc.compile(spilling, &["-arch=sm_90".to_owned()]).unwrap();
    let found = resources(&cubin, "spilling").unwrap();
    assert!(found.stack > 0 && found.registers <= 32, "{found:?}");
}

#[test]
fn a_text_with_an_error_is_refused_with_its_place() {
    let Some(nvrtc) = nvrtc() else { return };
    let text = source().replacen("const int token = blockIdx.x", "const int token = nowhere", 1);
    let error = nvrtc
        .compile(&text, &options(&shape(SMALL), (9, 0)))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("qk_norm_rope.cu(") && error.contains("nowhere"),
        "{error}"
    );
    let error = nvrtc
        .compile(source(), &["-arch=sm_10".to_owned()])
        .unwrap_err()
        .to_string();
    assert!(error.contains("invalid value for --gpu-architecture"), "{error}");
}
