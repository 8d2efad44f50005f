//! Values of options: names, texts and whole numbers.

use clap::ValueEnum;
use kontext::Kind;

/// Values of `--references`; see [`References`](kontext::References).
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum ReferencesArg {
    /// Side by side on one plane of positions
    #[default]
    Offset,
    /// Each on a separate plane
    Index,
    /// Joined to one image
    Stitch,
}

/// Values of `--dtype` and `--compute`.
#[allow(
    missing_docs,
    reason = "the documentation of a value is printed by --help; these need none"
)]
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DtypeArg {
    F32,
    Bf16,
}

impl DtypeArg {
    /// Returns libtorch's name for the dtype.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

/// Values of `--conform`; see [`Conformance`](kontext::Conformance).
#[allow(
    missing_docs,
    reason = "the documentation of a value is printed by --help; these need none"
)]
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ConformArg {
    Diffusers,
    Bfl,
}

/// Parses a text that may begin with a dash, such as “-5 degrees”.
///
/// # Errors
/// If it looks like a flag, before which a text was forgotten.
pub fn free_text(text: &str) -> Result<String, &'static str> {
    let name = text.strip_prefix("--").and_then(|flag| flag.split('=').next());
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain)) {
        return Err("expected a text, and this looks like a flag");
    }
    Ok(text.to_owned())
}

/// Parses a number of pixels, steps or images.
///
/// # Errors
/// If it is not a whole number of at least 1.
pub fn positive<T: TryFrom<u128>>(text: &str) -> Result<T, &'static str> {
    match text.parse::<u128>() {
        Ok(number) if number > 0 => T::try_from(number).map_err(|_| "expected a smaller number"),
        _ => Err("expected a whole number of at least 1"),
    }
}

/// Parses a colour of sRGB: its red, green and blue in two hexadecimal digits each.
///
/// # Errors
/// If it is written otherwise.
pub fn color(text: &str) -> Result<[u8; 3], &'static str> {
    const EXPECTED: &str = "expected six hexadecimal digits, as in ff8000 for orange";
    let digits = text.strip_prefix('#').unwrap_or(text);
    if digits.len() != 6 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(EXPECTED);
    }
    let [_, red, green, blue] = u32::from_str_radix(digits, 16).map_err(|_| EXPECTED)?.to_be_bytes();
    Ok([red, green, blue])
}

/// Parses a seed.
///
/// # Errors
/// If it is not a whole number.
pub fn whole(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_color_has_six_digits() {
        assert_eq!(color("ff8000"), Ok([255, 128, 0]));
        assert_eq!(color("#FF8000"), Ok([255, 128, 0]));
        for text in ["", "white", "fff", "+f8000", "ff80001", "ff80é"] {
            assert!(color(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_text_may_begin_with_a_dash_but_not_be_a_flag() {
        for text in [
            "-5 degrees, make it winter",
            "-",
            "--",
            "--no text",
            "- a list",
            "--Title",
        ] {
            assert_eq!(free_text(text).as_deref(), Ok(text));
        }
        for text in ["--plan", "--native-size", "--out=a.png"] {
            assert!(free_text(text).is_err(), "{text}");
        }
    }
}
