//! Build script: compiles the shim against the libtorch of tch.

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=src/shim.cpp");
    // Set by torch-sys; without libtorch (`doc-only`) nothing is linked, and the shim is not needed.
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else {
        return;
    };
    let include = Path::new(&lib).join("../include");
    cc::Build::new()
        .cpp(true)
        .warnings(false)
        .std("c++17")
        // As libtorch itself: some of its classes have other members without it.
        .define("NDEBUG", None)
        .include(include.join("torch/csrc/api/include"))
        .include(&include)
        .file("src/shim.cpp")
        .compile("kit_shim");
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-lib=torch_cpu");
    println!("cargo:rustc-link-lib=c10");
}
