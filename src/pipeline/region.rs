//! Edited tokens of a run, and the velocity of the others.

use kontext_core::{Error, Result, Tensor};
use kontext_dit::{EditedTokens, ReferenceReuse, Region, edited_rows};
use kontext_sampler::Grid;

/// Edited tokens of a run, found after its first full steps.
pub(super) struct Edited {
    config: EditedTokens,
    grid: Grid,
    /// Latents of the first reference as tokens [1, L, C].
    reference: Tensor,
    rows: Option<Vec<i64>>,
    /// Latents, velocity and noise level of the last full step.
    full: Option<(Tensor, Tensor, f32)>,
    /// Velocity of the last step.
    last: Option<Tensor>,
}

impl Edited {
    /// Looks for tokens that differ from those of the first reference, which come first in `context` [1, R, C].
    pub(super) fn new(config: EditedTokens, grid: Grid, context: &Tensor) -> Result<Self> {
        Ok(Self {
            config,
            grid,
            reference: context.f_narrow(1, 0, grid.tokens())?,
            rows: None,
            full: None,
            last: None,
        })
    }

    /// Keeps a full step.
    pub(super) fn keep(&mut self, x: &Tensor, velocity: &Tensor, sigma: f32) -> Result<()> {
        self.full = Some((x.shallow_clone(), velocity.shallow_clone(), sigma));
        self.last = Some(velocity.shallow_clone());
        Ok(())
    }

    /// Returns the edited rows; the first call finds them in the image that the last full step leads to.
    pub(super) fn rows(&mut self) -> Result<Vec<i64>> {
        if let Some(rows) = &self.rows {
            return Ok(rows.clone());
        }
        let (x, velocity, sigma) = self.full()?;
        let estimate = x.f_sub(&velocity.f_to_kind(x.kind())?.f_mul_scalar(f64::from(*sigma))?)?;
        let grid = [self.grid.rows, self.grid.cols];
        let rows = edited_rows(&estimate, &self.reference, grid, self.config.threshold)?;
        self.rows = Some(rows.clone());
        Ok(rows)
    }

    /// Returns the velocity of all tokens: of the edited ones as computed, [N, M, C], or else the last step's times the
    /// published ratio; of the others that of the last full step.
    pub(super) fn velocity(
        &mut self,
        region: Option<&Region>,
        sigmas: &[f32],
        step: usize,
        computed: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (_, full, _) = self.full()?;
        let velocity = match (region, computed, &self.last) {
            (Some(region), Some(computed), _) => region.scatter(full, &computed.f_to_kind(full.kind())?)?,
            (Some(region), None, Some(last)) => {
                let rows = region.gather(last)?;
                let rows = rows.f_mul_scalar(ReferenceReuse::ratio(sigmas, step)?)?;
                region.scatter(full, &rows)?
            }
            // Nothing is edited.
            _ => full.shallow_clone(),
        };
        self.last = Some(velocity.shallow_clone());
        Ok(velocity)
    }

    /// Returns the number of edited tokens.
    pub(super) fn count(&self) -> u64 {
        self.rows.as_ref().map_or(0, |rows| rows.len() as u64)
    }

    fn full(&self) -> Result<&(Tensor, Tensor, f32)> {
        self.full
            .as_ref()
            .ok_or_else(|| Error::bug("edited tokens before a full step"))
    }
}
