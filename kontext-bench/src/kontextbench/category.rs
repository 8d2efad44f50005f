//! The five edit categories of KontextBench.
//!
//! Source: Black Forest Labs, "FLUX.1 Kontext: Flow Matching for In-Context Image Generation and Editing in
//! Latent Space" (2025), and the data set black-forest-labs/kontext-bench, field `category`.

/// Published categories, in alphabetical order.
pub const CATEGORIES: [&str; 5] = [
    "Character Reference",
    "Instruction Editing - Global",
    "Instruction Editing - Local",
    "Style Reference",
    "Text Editing",
];

/// Returns the published category with this name, ignoring case, spaces and dashes; `None` if there is none.
///
/// ```
/// use kontext_bench::kontextbench::category;
/// assert_eq!(category("instruction editing – local"), Some("Instruction Editing - Local"));
/// assert_eq!(category("Local"), None);
/// ```
#[must_use]
pub fn category(name: &str) -> Option<&'static str> {
    let letters = |name: &str| -> String { name.chars().filter(|c| c.is_alphanumeric()).collect() };
    let wanted = letters(&name.to_lowercase());
    CATEGORIES
        .into_iter()
        .find(|category| letters(&category.to_lowercase()) == wanted)
}
