//! Roundings of a run.

/// Roundings of a run in a dtype narrower than f32; in f32 the choice changes nothing.
///
/// Every matrix product and the attention round their results in each of them.
///
/// | rounded | `Fewest` | `Diffusers` | `Bfl` |
/// |---|---|---|---|
/// | queries and keys | after their rotation | also before it | also before it, and before the norm's weight |
/// | the MLP's input to GELU | on a CPU, with packed weights or an adapter | yes | yes |
/// | `1 + scale` of the modulation | without kernels only | yes | yes |
/// | the product of gate and branch | no | no | no |
///
/// Kernels ([`crate::Dit::set_kernels`]) run in `Fewest` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// As few roundings as the fused operations of the device allow.
    #[default]
    Fewest,
    /// Those of diffusers 0.38 in queries, keys and MLP.
    Diffusers,
    /// Those of black-forest-labs/flux@802fb47 in queries, keys and MLP.
    Bfl,
}
