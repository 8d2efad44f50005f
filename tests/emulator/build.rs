//! Compiles the kernels' text for the CPU: for each shape as it is, and for one shape with each fault.

#![allow(
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "a build script fails by a panic, and reads a module of the library"
)]

use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "src/variants.rs"]
mod variants;

/// The text's files, in the order of `kontext_kernels::source`, which a test compares.
const PARTS: [&str; 5] = [
    "common.cuh",
    "qk_norm_rope.cu",
    "residual_norm.cu",
    "gelu_concat.cu",
    "group_norm.cu",
];

/// The kernels' names in the text.
const KERNELS: [&str; 6] = [
    "qk_norm_rope",
    "residual_norm",
    "residual_norm_fp8",
    "gelu_concat_fp8",
    "group_sums",
    "group_norm",
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let folder = Path::new("../../kontext-kernels/cuda");
    for path in ["build.rs", "src/variants.rs", "cpp"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-changed={}", folder.display());
    let text: String = PARTS.iter().map(|part| part_text(folder, part)).collect();
    write(&out.join("source.cu"), &text);

    let mut variants: Vec<_> = variants::SHAPES.map(|shape| (shape, text.clone())).into();
    for fault in variants::FAULTS {
        let (before, after) = fault.patch();
        let fits = text.matches(before).count() == 1;
        assert!(fits, "the patch of {fault:?} must fit the text once: {before:?}");
        variants.push((variants::FAULTY_SHAPE, text.replace(before, after)));
    }
    let mut files = Vec::new();
    for (index, (shape, text)) in variants.iter().enumerate() {
        let path = out.join(format!("kernels_{index}.cpp"));
        write(&path, &variant(index, *shape, text));
        files.push(path);
    }
    let list = out.join("variants.cpp");
    write(&list, &variant_list(files.len()));

    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    // The kernels with hooks on each access, and with fused operations only where the text has them.
    compiler()
        .files(&files)
        .flag("-fsanitize=thread,alignment")
        .flag("-ffp-contract=off")
        .flag_if_supported("-Wno-tsan")
        .flag("-Wno-unknown-pragmas")
        .compile("emulated_kernels");
    // The fortified longjmp takes a jump between stacks for a fault.
    compiler()
        .files(["cpp/machine.cpp", "cpp/memory.cpp"])
        .file(&list)
        .flag("-U_FORTIFY_SOURCE")
        .compile("emulated_machine");
}

fn compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(false).include("cpp");
    if let Err(error) = build.try_get_compiler() {
        panic!("the emulator for the kernels' tests needs a C++ compiler (on Debian, the package g++): {error}");
    }
    build
}

/// Returns a file of the text, after the line by which compilers name it in messages.
fn part_text(folder: &Path, part: &str) -> String {
    let path = folder.join(part);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    format!("#line 1 \"{part}\"\n{text}")
}

/// Returns the file that compiles the text for a shape. Kernels get other names, because all files are linked
/// together.
fn variant(index: usize, [width, head, mlp]: [i64; 3], text: &str) -> String {
    let names = KERNELS
        .map(|kernel| format!("#define {kernel} {kernel}_{index}\n"))
        .concat();
    let plain_names = KERNELS.map(|kernel| format!("#undef {kernel}\n")).concat();
    let entries = KERNELS
        .map(|kernel| format!("    EMULATED(\"{kernel}\", {kernel}_{index}),\n"))
        .concat();
    format!(
        "#include \"cuda_on_host.h\"\n#define WIDTH {width}\n#define HEAD {head}\n#define MLP {mlp}\n\
         {names}namespace {{\n{text}}}\n{plain_names}\
         extern \"C\" const EmulatedKernel emulated_kernels_{index}[] = {{\n{entries}    {{nullptr, nullptr}},\n}};\n"
    )
}

/// Returns the file with the list of all variants' kernels.
fn variant_list(count: usize) -> String {
    let declarations: String = (0..count)
        .map(|index| format!("extern \"C\" const EmulatedKernel emulated_kernels_{index}[];\n"))
        .collect();
    let names: String = (0..count).map(|index| format!("emulated_kernels_{index}, ")).collect();
    format!(
        "#include \"cuda_on_host.h\"\n{declarations}\
         extern \"C\" const EmulatedKernel *const emulated_variants[] = {{{names}}};\n"
    )
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
