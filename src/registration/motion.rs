//! A translation and a zoom about the image's centre.

/// The motion of a point at `position` from the image's centre to `scale * position + shift`, in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Motion {
    pub shift: [f64; 2],
    pub scale: f64,
}

impl Motion {
    pub(super) const IDENTITY: Self = Self {
        shift: [0.0; 2],
        scale: 1.0,
    };

    /// Returns the same motion in pixels that are `factor` times as large.
    pub(super) fn in_pixels_of(self, factor: f64) -> Self {
        Self {
            shift: self.shift.map(|shift| shift / factor),
            ..self
        }
    }

    /// Returns this motion after the inverse of a small one: `step` has its translation, and by how many pixels it
    /// zooms points at `radius` outwards.
    pub(super) fn after_inverse(self, step: [f64; 3], radius: f64) -> Self {
        let scale = self.scale / (1.0 + step[2] / radius);
        let [x, y] = self.shift;
        Self {
            shift: [x - scale * step[0], y - scale * step[1]],
            scale,
        }
    }

    /// Computes by how many pixels the corner that moves most moves, in an image of these sides.
    pub(super) fn at_corners(self, sides: [f64; 2]) -> f64 {
        // The translation and the zoom point into the same direction at one of the corners.
        let [x, y] = [0, 1].map(|axis| self.shift[axis].abs() + (self.scale - 1.0).abs() * sides[axis] / 2.0);
        x.hypot(y)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_motion_after_its_own_inverse_is_none() {
        let motion = Motion {
            shift: [3.0, -2.0],
            scale: 1.25,
        };
        // At a radius of 8 pixels, a zoom of 1.25 moves by 2.
        let none = motion.after_inverse([3.0, -2.0, 2.0], 8.0);
        assert!(none.at_corners([10.0, 10.0]) < 1e-12, "{none:?}");
    }

    #[test]
    fn the_farthest_corner_is_the_one_of_both_directions() {
        let motion = Motion {
            shift: [-3.0, 0.0],
            scale: 1.02,
        };
        // Left corners: 3 and 1 pixel to the left, 4 to the top or the bottom... of 100 x 400.
        assert!((motion.at_corners([100.0, 400.0]) - 4.0_f64.hypot(4.0)).abs() < 1e-12);
    }
}
