//! The edited tokens of a target: where its estimate differs from the reference.
//!
//! Source: RegionE, Peyton-Chen/RegionE@974da98 `src/FluxKontext/utils.py`, `token_selector`.

use kontext_core::{Error, Kind, Result, Tensor, check, range};

/// Choice of the edited tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct EditedTokens {
    /// Cosine, from -1 to 1, of a token's estimate and the reference's token at its place up to which it is
    /// edited. Default: 0.93.
    pub threshold: f64,
    /// Upper bound, from 0 to 1, of the relative error of an estimated velocity, up to which a step is not
    /// computed; 0 computes all. Default: 0.04.
    pub error: f64,
}

impl Default for EditedTokens {
    fn default() -> Self {
        Self {
            threshold: 0.93,
            error: 0.04,
        }
    }
}

impl EditedTokens {
    pub(super) fn validate(&self) -> Result<()> {
        range::within("threshold", self.threshold, -1.0..=1.0)?;
        range::within("error", self.error, 0.0..=1.0)?;
        Ok(())
    }
}

/// Returns the edited rows of a target, in rising order: those of all items of a batch together.
///
/// A token is edited if the cosine of its estimate and the reference's token at the same place is at most
/// `threshold`. Single ones are removed and the rest is widened: the mask is eroded by a cross of 3x3 tokens,
/// outside of which nothing is edited, and dilated by a square of 5x5.
///
/// # Shapes
/// `estimate` [B, L, C], the image of one Euler step to noise level 0; `reference` [1 or B, L, C], the first
/// reference's latents; `grid`, rows and columns of their L tokens.
///
/// # Errors
/// [`Error::Shape`] unless both have the grid's tokens, [`Error::InvalidArgument`] for a grid of no tokens.
///
/// # Example
/// Of a grid of 4x5 tokens, a column of three is edited; erosion leaves one token, and dilation makes it a
/// square.
/// ```
/// use kontext_core::{Device, Kind, Tensor};
/// let reference = Tensor::ones([1, 20, 2], (Kind::Float, Device::Cpu));
/// let estimate = reference.copy();
/// for (row, column) in [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1), (3, 4)] {
///     let _ = estimate.narrow(1, 5 * row + column, 1).neg_();
/// }
/// let rows = kontext_dit::edited_rows(&estimate, &reference, [4, 5], 0.93)?;
/// assert_eq!(rows, [0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18]);
/// # Ok::<(), kontext_core::Error>(())
/// ```
pub fn edited_rows(estimate: &Tensor, reference: &Tensor, grid: [i64; 2], threshold: f64) -> Result<Vec<i64>> {
    let [rows, columns] = grid;
    let [batch, _, width] = check::dims("estimate", estimate, "[B, L, C]")?;
    let Some(count) = grid_tokens(grid) else {
        let expected = "rows and columns of at least 1";
        return Err(Error::invalid(
            "grid of tokens",
            expected,
            format!("{rows} and {columns}"),
        ));
    };
    let tokens = Some(count);
    check::shape("estimate", estimate, "[B, rows * columns, C]", &[None, tokens, None])?;
    let expected = "[1 or B, rows * columns, C]";
    check::shape("reference", reference, expected, &[None, tokens, Some(width)])?;
    if ![1, batch].contains(&reference.size()[0]) {
        return Err(Error::Shape {
            tensor: "reference",
            expected,
            got: reference.size(),
        });
    }
    let unit = |x: &Tensor| -> Result<Tensor> {
        /// Of PyTorch's `normalize`.
        const LEAST: f64 = 1e-12;
        let x = x.f_to_kind(Kind::Float)?;
        let norm = x.f_norm_scalaropt_dim(2.0, -1_i64, true)?.f_clamp_min(LEAST)?;
        Ok(x.f_div(&norm)?)
    };
    let cosine = unit(estimate)?
        .f_mul(&unit(reference)?)?
        .f_sum_dim_intlist(-1_i64, false, Kind::Float)?; // [B, L]
    let below: Vec<bool> = Vec::try_from(&cosine.f_le(threshold)?.f_flatten(0, -1)?)?;
    let mut all = vec![false; count as usize];
    for item in below.chunks_exact(all.len().max(1)) {
        let mask = Mask::new(item, columns).eroded().dilated();
        for (all, set) in all.iter_mut().zip(mask.set) {
            *all |= set;
        }
    }
    Ok((0..).zip(all).filter_map(|(row, set)| set.then_some(row)).collect())
}

/// Returns the number of a grid's tokens, or `None` if a side is below 1 or the number too large.
pub(crate) fn grid_tokens([rows, columns]: [i64; 2]) -> Option<i64> {
    rows.checked_mul(columns).filter(|_| rows > 0 && columns > 0)
}

/// A map of set places in rows and columns.
struct Mask {
    set: Vec<bool>,
    columns: i64,
}

impl Mask {
    fn new(set: &[bool], columns: i64) -> Self {
        let set = set.to_vec();
        Self { set, columns }
    }

    /// Sets the places of which all neighbours in a cross of 3x3 are set.
    fn eroded(&self) -> Self {
        const CROSS: [(i64, i64); 5] = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)];
        self.map(|row, column| CROSS.iter().all(|(down, right)| self.at(row + down, column + right)))
    }

    /// Sets the places with any set neighbour in a square of 5x5.
    fn dilated(&self) -> Self {
        let around = |middle: i64| middle - 2..=middle + 2;
        self.map(|row, column| around(row).any(|row| around(column).any(|column| self.at(row, column))))
    }

    fn map(&self, set: impl Fn(i64, i64) -> bool) -> Self {
        let place = |place: i64| set(place / self.columns, place % self.columns);
        Self {
            set: (0..self.set.len() as i64).map(place).collect(),
            columns: self.columns,
        }
    }

    /// Returns `true` for a set place; there are none outside.
    fn at(&self, row: i64, column: i64) -> bool {
        (0..self.columns).contains(&column)
            && usize::try_from(row * self.columns + column).is_ok_and(|place| self.set.get(place) == Some(&true))
    }
}

#[cfg(test)]
mod tests {
    use kontext_core::Device;

    use super::*;

    fn mask(rows: &[&str]) -> Mask {
        let set: Vec<bool> = rows.concat().bytes().map(|byte| byte == b'#').collect();
        Mask::new(&set, rows[0].len() as i64)
    }

    fn drawn(mask: &Mask) -> Vec<String> {
        let letters: Vec<char> = mask.set.iter().map(|set| if *set { '#' } else { '.' }).collect();
        letters.chunks(mask.columns as usize).map(String::from_iter).collect()
    }

    #[test]
    fn erosion_removes_single_places_and_edges_and_dilation_widens_by_two() {
        let mask = mask(&[
            ".......#..", //
            ".###......",
            ".####.....",
            ".###...#..",
            "......###.",
            ".......#..",
            "##........",
            "##........",
        ]);
        let eroded = mask.eroded();
        let expected = [
            "..........", //
            "..........",
            "..##......",
            "..........",
            ".......#..",
            "..........",
            "..........",
            "..........",
        ];
        assert_eq!(drawn(&eroded), expected);
        let expected = [
            "######....", //
            "######....",
            "##########",
            "##########",
            "##########",
            ".....#####",
            ".....#####",
            "..........",
        ];
        assert_eq!(drawn(&eroded.dilated()), expected);
    }

    /// The rows of a case whose cosines were computed by NumPy (`tests/reference/parts/edited.py`).
    #[test]
    fn rows_are_those_of_the_published_program() {
        let fixture = kontext_nn::Weights::open(kontext_fixtures::reference("edited.safetensors")).unwrap();
        let raw = |name: &str| fixture.raw(name).unwrap();
        for case in ["one", "batch"] {
            let [estimate, reference] = ["estimate", "reference"].map(|name| raw(&format!("{case}.{name}")));
            let rows = edited_rows(&estimate, &reference, [9, 11], 0.93).unwrap();
            assert_eq!(
                rows,
                Vec::<i64>::try_from(raw(&format!("{case}.rows"))).unwrap(),
                "{case}"
            );
        }
    }

    #[test]
    fn the_rows_of_a_batch_are_those_of_all_items() {
        let fixture = kontext_nn::Weights::open(kontext_fixtures::reference("edited.safetensors")).unwrap();
        let [estimate, reference] = ["batch.estimate", "batch.reference"].map(|name| fixture.raw(name).unwrap());
        let rows = |estimate: &Tensor| edited_rows(estimate, &reference, [9, 11], 0.93).unwrap();
        let [one, other] = [0, 1].map(|item| rows(&estimate.narrow(0, item, 1)));
        let expected: std::collections::BTreeSet<_> = one.iter().chain(&other).copied().collect();
        assert!(expected.len() > one.len().max(other.len()));
        assert_eq!(rows(&estimate), expected.into_iter().collect::<Vec<_>>());
        assert!(rows(&reference).is_empty());
    }

    #[test]
    fn other_sizes_are_refused() {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        for (estimate, reference) in [
            ([1, 6, 2], [1, 5, 2]),
            ([1, 5, 2], [1, 6, 2]),
            ([1, 6, 2], [1, 6, 3]),
            ([3, 6, 2], [2, 6, 2]),
        ] {
            let error = edited_rows(&zeros(&estimate), &zeros(&reference), [2, 3], 0.5).unwrap_err();
            assert!(error.to_string().contains("expected shape"), "{error}");
        }
        for grid in [[0, 6], [-2, -3], [i64::MAX, 2]] {
            let error = edited_rows(&zeros(&[1, 6, 2]), &zeros(&[1, 6, 2]), grid, 0.5).unwrap_err();
            assert!(
                error.to_string().contains("expected rows and columns of at least 1"),
                "{error}"
            );
        }
    }
}
