//! Conversion of 8-bit sRGB to CIE L*a*b* under D65.
//!
//! Source: scikit-image 0.26 `skimage/color/colorconv.py`, `rgb2lab`, with its matrix and white.

/// L*, a*, b*.
pub(super) type Lab = [f64; 3];

/// Matrix from linear red, green and blue to X, Y, Z.
const TO_XYZ: [[f64; 3]; 3] = [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
];
/// X, Y, Z of D65 for the 2-degree observer.
const WHITE: [f64; 3] = [0.95047, 1.0, 1.08883];

/// Linear intensity of each of the 256 levels.
#[derive(Debug)]
pub(super) struct Converter([f64; 256]);

impl Converter {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|level| {
            let value = level as f64 / 255.0;
            if value > 0.04045 {
                ((value + 0.055) / 1.055).powf(2.4)
            } else {
                value / 12.92
            }
        }))
    }

    pub(super) fn lab(&self, rgb: [u8; 3]) -> Lab {
        let linear = rgb.map(|level| self.0.get(usize::from(level)).copied().unwrap_or_default());
        let mut xyz = [0.0; 3];
        for ((out, row), white) in xyz.iter_mut().zip(TO_XYZ).zip(WHITE) {
            *out = curve(
                row.iter()
                    .zip(linear)
                    .map(|(weight, value)| weight * value)
                    .sum::<f64>()
                    / white,
            );
        }
        let [x, y, z] = xyz;
        [116.0 * y - 16.0, 500.0 * (x - y), 200.0 * (y - z)]
    }
}

/// Computes the cube root, with a line near black and scikit-image's rounded constants.
fn curve(value: f64) -> f64 {
    if value > 0.008856 {
        value.cbrt()
    } else {
        7.787 * value + 16.0 / 116.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greys_have_their_lightness_and_hardly_any_colour() {
        let converter = Converter::new();
        let [white, a, b] = converter.lab([255; 3]);
        assert!(
            (white - 100.0).abs() < 1e-6 && a.abs() < 0.01 && b.abs() < 0.02,
            "{white} {a} {b}"
        );
        assert!(converter.lab([0; 3]).iter().all(|value| value.abs() < 1e-9));
        assert!((converter.lab([119; 3])[0] - 50.0).abs() < 0.1);
    }
}
