//! Features of the CPU that decide how fast it computes.

/// Returns those of the CPU's features that its speed depends on, by their usual names: AVX2 for unpacking
/// weights; FMA, AVX-512, AMX and bf16 units for libtorch's products. On x86-64, AMX and bf16 are found on
/// Linux only.
///
/// # Example
/// ```
/// # #[cfg(target_arch = "x86_64")]
/// assert_eq!(kontext_device::cpu::features().contains(&"AVX2"), is_x86_feature_detected!("avx2"));
/// ```
#[must_use]
pub fn features() -> Vec<&'static str> {
    let mut features = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        let detected = [
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("AVX-512", is_x86_feature_detected!("avx512f")),
        ];
        features.extend(detected.into_iter().filter_map(|(name, has)| has.then_some(name)));
    }
    if cfg!(target_arch = "aarch64") {
        // A part of the architecture.
        features.push("NEON");
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("bf16") {
        features.push("ARM bf16");
    }
    features.extend(listed(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()));
    features
}

/// Returns `true` if the CPU has units for products in bf16: AVX-512's, AMX's or ARM's. Without them libtorch
/// computes in bf16 hundreds of times as slowly as in f32.
#[must_use]
pub fn has_bf16_units() -> bool {
    features().iter().any(|feature| feature.ends_with(" bf16"))
}

/// Returns the features that only the system's list names.
fn listed(cpuinfo: &str) -> Vec<&'static str> {
    const NAMES: [(&str, &str); 3] = [
        ("avx512_bf16", "AVX-512 bf16"),
        ("amx_tile", "AMX"),
        ("amx_bf16", "AMX bf16"),
    ];
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
    let has = |flag: &str| flags.is_some_and(|line| line.split_whitespace().any(|word| word == flag));
    NAMES
        .into_iter()
        .filter_map(|(flag, name)| has(flag).then_some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_the_first_processors_flags() {
        let text = "processor\t: 0\nflags\t\t: fpu avx2 amx_tile amx_int8\n\nprocessor\t: 1\nflags\t\t: amx_bf16\n";
        assert_eq!(listed(text), ["AMX"]);
        assert_eq!(listed("Features\t: asimd bf16\n"), Vec::<&str>::new());
    }

    #[test]
    fn units_for_bf16_are_those_that_the_features_name() {
        let named = features()
            .iter()
            .any(|name| ["AVX-512 bf16", "AMX bf16", "ARM bf16"].contains(name));
        assert_eq!(has_bf16_units(), named);
    }
}
