//! Steps that compute fewer tokens: without the references, or without most of the target, too.

use kontext_core::{During, Error, Result, Stage, Tensor, check};

use crate::kept::{Absent, KeptKv, KeptTokens, Sizes};
use crate::model::check_step;
use crate::pass::Pass;
use crate::rope::Rope;
use crate::{Dit, Run};

/// Rows of a run's target that a step computes, the same in each sample of a batch.
#[derive(Debug)]
pub struct Region {
    /// Computed rows of the target [M].
    rows: Tensor,
    /// Rows of target and references that are not computed [L - M + R].
    absent: Tensor,
    /// Rotations of text and computed rows.
    rope: Rope,
    /// Numbers of tokens of the run.
    sizes: Sizes,
}

impl Region {
    /// Takes the rows of the run's target that are computed, in rising order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no rows, or rows that do not rise or are not the target's.
    pub fn new(run: &Run, rows: &[i64]) -> Result<Self> {
        let rising = rows.windows(2).all(|pair| pair[0] < pair[1]);
        let (Some(&first), Some(&last)) = (rows.first(), rows.last()) else {
            return Err(Error::invalid("rows of the region", "at least one", "none"));
        };
        if !rising || first < 0 || last >= run.target {
            return Err(Error::invalid(
                "rows of the region",
                format!("rising numbers from 0 to {}", run.target - 1),
                format!("{} from {first} to {last}", rows.len()),
            ));
        }
        let (device, text, image) = (run.txt.device(), run.txt.size()[1], run.target + run.references());
        let absent: Vec<i64> = (0..image).filter(|row| rows.binary_search(row).is_err()).collect();
        let present: Vec<i64> = (0..text).chain(rows.iter().map(|row| text + row)).collect();
        let index = |rows: &[i64]| Tensor::f_from_slice(rows)?.f_to_device(device);
        Ok(Self {
            rows: index(rows)?,
            absent: index(&absent)?,
            rope: run.rope.select(&index(&present)?)?,
            sizes: run.sizes(),
        })
    }

    /// Returns the number of computed rows.
    #[must_use]
    pub fn len(&self) -> i64 {
        self.rows.size().first().copied().unwrap_or_default()
    }

    /// Returns `false`: a region has at least one row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the region's rows of a tensor [N, L, C], as [N, M, C].
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails, as it does for fewer tokens than the run's.
    pub fn gather(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_index_select(1, &self.rows)?)
    }

    /// Returns a copy of `x` [N, L, C] with the region's rows from `rows` [N, M, C].
    ///
    /// # Errors
    /// [`Error::Torch`] if libtorch fails, as it does for other shapes.
    pub fn scatter(&self, x: &Tensor, rows: &Tensor) -> Result<Tensor> {
        Ok(x.f_index_copy(1, &self.rows, rows)?)
    }
}

impl KeptKv {
    /// Allocates room for the tokens of a run, for samples of the batch size `batch` (N).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a run without references, [`Error::Torch`] if the memory cannot be had.
    pub fn new(dit: &Dit, run: &Run, batch: i64, tokens: KeptTokens) -> Result<Self> {
        if run.references() == 0 {
            return Err(Error::invalid(
                "reuse of keys and values",
                "a run with reference images, whose tokens it spares",
                "none",
            ));
        }
        let options = (run.txt.kind(), run.txt.device());
        Self::allocate(&dit.config, run.sizes(), batch, tokens, options)
    }

    /// Computes a full step of `batch` samples that writes the store. `compute` also returns `true` if the
    /// step had all blocks: with fewer the store stays unwritten.
    pub(crate) fn write<T>(
        &mut self,
        run: &Run,
        batch: i64,
        compute: impl FnOnce(&Pass<'_>) -> Result<(T, bool)>,
    ) -> Result<T> {
        self.check(run.sizes(), batch)?;
        self.set_filled(false);
        let (value, all) = compute(&run.whole().keeping(self))?;
        self.set_filled(all);
        Ok(value)
    }

    /// Computes a step of `batch` samples from text and target, with the references' keys and values of the
    /// store.
    pub(crate) fn without_references<T>(
        &self,
        run: &Run,
        batch: i64,
        compute: impl FnOnce(&Pass<'_>) -> Result<T>,
    ) -> Result<T> {
        self.check(run.sizes(), batch)?;
        self.check_filled()?;
        let rope = run.rope.range(0, run.txt.size()[1] + run.target)?;
        let count = run.references();
        compute(&Pass::reduced(&rope, run.target, self, Absent::Last { count }))
    }
}

impl Dit {
    /// Computes [`Dit::forward`], and keeps the keys and values of some tokens for the run's next steps.
    ///
    /// # Errors
    /// Those of [`Dit::forward`], and [`Error::InvalidArgument`] for a store of other sizes.
    pub fn forward_keeping(&self, run: &Run, step: usize, target: &Tensor, kept: &mut KeptKv) -> Result<Tensor> {
        self.check_target(run, target)?;
        check_step(run, step)?;
        kept.write(run, target.size()[0], |pass| {
            let velocity = self.forward_pass(run, step as i64, target, pass);
            Ok((velocity.during(Stage::Forward)?, true))
        })
    }

    /// Predicts the velocity as [`Dit::forward`] does, from text and target only: attention reads the
    /// references' keys and values of the last full step. At that step, with its latents, the velocity is the
    /// full step's.
    ///
    /// # Errors
    /// Those of [`Dit::forward`], and [`Error::InvalidArgument`] for a store of other sizes, or one that no
    /// full step has written.
    pub fn forward_reduced(&self, run: &Run, step: usize, target: &Tensor, kept: &KeptKv) -> Result<Tensor> {
        self.check_target(run, target)?;
        check_step(run, step)?;
        kept.without_references(run, target.size()[0], |pass| {
            self.forward_pass(run, step as i64, target, pass).during(Stage::Forward)
        })
    }

    /// Predicts the velocity of some rows of the target, from the text and these rows only: attention reads
    /// the keys and values of all other tokens of the last full step.
    ///
    /// # Shapes
    /// `target` [N, M, in_channels], the rows of the region ([`Region::gather`]); returns [N, M,
    /// out_channels].
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of rows, [`Error::InvalidArgument`] for a step outside the run, a
    /// region of another run, and a store of other sizes or tokens, or one that no full step has written.
    pub fn forward_region(
        &self,
        run: &Run,
        step: usize,
        target: &Tensor,
        region: &Region,
        kept: &KeptKv,
    ) -> Result<Tensor> {
        let sizes = [None, Some(region.len()), Some(self.config.in_channels)];
        check::shape("target", target, "[N, M, in_channels]", &sizes)?;
        check_step(run, step)?;
        if region.sizes != run.sizes() {
            let words = |sizes: Sizes| format!("{}, {} and {}", sizes.text, sizes.target, sizes.references);
            return Err(Error::invalid(
                "region",
                format!("one of {} tokens of text, target and references", words(run.sizes())),
                words(region.sizes),
            ));
        }
        if kept.tokens() != KeptTokens::Image {
            return Err(Error::invalid(
                "kept keys and values",
                "those of target and references, for a step of some rows",
                "the references' only",
            ));
        }
        kept.check(run.sizes(), target.size()[0])?;
        kept.check_filled()?;
        let pass = Pass::reduced(&region.rope, region.len(), kept, Absent::Rows(&region.absent));
        self.forward_pass(run, step as i64, target, &pass)
            .during(Stage::Forward)
    }
}
