//! The quality of held-out results in one step, by which a failing training shows.

use kontext_core::{Error, Kind, Result, Stage, Tensor, check};

use crate::run::Snapshot;

/// Name of the qualities in a state, [validations, 5] in f64.
const RECORD: &str = "held_out";
const FIELDS: i64 = 5;
/// Sharpness of an image in -1 to 1 below which it is flat: a level of 256.
const FLAT: f64 = 2.0 / 255.0;
/// Images are averaged to this side at most before they are compared with all truths.
const COMPARED: i64 = 64;

/// Quality of held-out results, each made in one step from the highest noise level with a share in
/// [`crate::AdversarialObjective::shares`], by comparison with the data's images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quality {
    /// Finished steps.
    pub step: u64,
    /// Mean absolute difference of neighbouring pixels, divided by that of the true image after the
    /// autoencoder: below 1 a result is blurred, above 1 its edges ring. The mean over the results whose true
    /// image has edges; not a number if none has.
    pub sharpness: f64,
    /// Share of the results that are nearer to their own true image than to that of any other item, in
    /// pixels.
    pub right: f64,
    /// Relative L2 distance of the results of two seeds, in latents.
    pub distance: f64,
    /// Number of results.
    pub items: usize,
}

/// Results and truths of some items of one size.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Of those whose truth is not flat.
    sharpness: Vec<f64>,
    /// [3 S S] of each.
    results: Vec<Tensor>,
    truths: Vec<Tensor>,
    /// Relative distances of the results of two seeds.
    distances: Vec<f64>,
}

impl Results {
    /// Adds images [B, 3, H, W] and their truths.
    pub(crate) fn add(&mut self, images: &Tensor, truths: &Tensor) -> Result<()> {
        check::finite(Stage::Validate, images)?;
        // As pixels are written.
        let (images, truths) = (&images.f_clamp(-1.0, 1.0)?, &truths.f_clamp(-1.0, 1.0)?);
        let of = |images| -> Result<Vec<f64>> { Ok(sharpness(images)?.f_to_kind(Kind::Double)?.try_into()?) };
        let found = of(images)?.into_iter().zip(of(truths)?);
        self.sharpness.extend(
            found
                .filter(|(_, of_truth)| *of_truth >= FLAT)
                .map(|(own, of_truth)| own / of_truth),
        );
        let small = |images: &Tensor| -> Result<Vec<Tensor>> {
            let size: Vec<i64> = images.size().iter().skip(2).map(|side| (*side).min(COMPARED)).collect();
            let rows = images.f_adaptive_avg_pool2d(size)?.f_flatten(1, -1)?;
            Ok(rows.f_to_device(tch::Device::Cpu)?.f_unbind(0)?)
        };
        self.results.extend(small(images)?);
        self.truths.extend(small(truths)?);
        Ok(())
    }

    /// Adds results of two seeds [B, L, C].
    pub(crate) fn add_seeds(&mut self, one: &Tensor, other: &Tensor) -> Result<()> {
        let distance = one.f_sub(other)?.f_norm()?.f_div(&one.f_norm()?)?;
        self.distances.push(distance.f_double_value(&[])?);
        Ok(())
    }

    /// Returns the number of the results that are nearest to their own truths.
    fn right(&self) -> Result<usize> {
        if self.results.is_empty() {
            return Ok(0);
        }
        let (results, truths) = (Tensor::f_stack(&self.results, 0)?, Tensor::f_stack(&self.truths, 0)?);
        let distances = Tensor::f_cdist(&results, &truths, 2.0, None)?;
        let own = distances.f_diag(0)?;
        // Items with the same truth are as near, but for the order of the sums.
        let least = distances.f_amin([1_i64].as_slice(), false)?.f_mul_scalar(1.0 + 1e-5)?;
        let right = own.f_le_tensor(&least)?.f_sum(Kind::Int64)?;
        Ok(right.f_int64_value(&[])? as usize)
    }
}

/// Returns the quality of the results of all sizes; `None` if there are none.
pub(crate) fn quality(step: u64, all: &[Results]) -> Result<Option<Quality>> {
    let items: usize = all.iter().map(|results| results.results.len()).sum();
    if items == 0 {
        return Ok(None);
    }
    let right = all.iter().map(Results::right).sum::<Result<usize>>()?;
    let sharpness: Vec<f64> = all
        .iter()
        .flat_map(|results| results.sharpness.iter().copied())
        .collect();
    let distances: Vec<f64> = all
        .iter()
        .flat_map(|results| results.distances.iter().copied())
        .collect();
    Ok(Some(Quality {
        step,
        sharpness: sharpness.iter().sum::<f64>() / sharpness.len() as f64,
        right: right as f64 / items as f64,
        distance: distances.iter().sum::<f64>() / distances.len().max(1) as f64,
        items,
    }))
}

/// Returns the mean absolute difference of neighbouring pixels [B] of images [B, 3, H, W].
fn sharpness(images: &Tensor) -> Result<Tensor> {
    let images = images.f_to_kind(Kind::Float)?;
    let along = |dim: i64| -> Result<Tensor> {
        let length = images.size()[dim as usize] - 1;
        let change = images
            .f_narrow(dim, 1, length)?
            .f_sub(&images.f_narrow(dim, 0, length)?)?;
        Ok(change
            .f_abs()?
            .f_mean_dim([1_i64, 2, 3].as_slice(), false, Kind::Float)?)
    };
    Ok(along(2)?.f_add(&along(3)?)?)
}

/// Returns the qualities for a state.
pub(crate) fn record(history: &[Quality]) -> Result<(String, Tensor)> {
    let row = |q: &Quality| [q.step as f64, q.sharpness, q.right, q.distance, q.items as f64];
    let values: Vec<f64> = history.iter().flat_map(row).collect();
    Ok((
        RECORD.to_owned(),
        Tensor::f_from_slice(&values)?.f_reshape([-1, FIELDS])?,
    ))
}

/// Takes the qualities out of a state.
///
/// # Errors
/// A checkpoint error if they have another shape.
pub(crate) fn restore(state: &Snapshot) -> Result<Vec<Quality>> {
    let Some(record) = state.record(RECORD)? else {
        return Ok(Vec::new());
    };
    let &[_, FIELDS] = record.size().as_slice() else {
        let reason = format!(
            "its `{RECORD}` has shape {:?}, expected [validations, 5]",
            record.size()
        );
        return Err(Error::config(state.path(), reason));
    };
    let values = Vec::<f64>::try_from(record.f_reshape([-1])?)?;
    let quality = |row: &[f64]| match *row {
        [step, sharpness, right, distance, items] => Some(Quality {
            step: step as u64,
            sharpness,
            right,
            distance,
            items: items as usize,
        }),
        _ => None,
    };
    Ok(values.chunks(FIELDS as usize).filter_map(quality).collect())
}

#[cfg(test)]
mod tests {
    use kontext_core::{Device, noise};

    use super::*;

    #[test]
    fn a_blurred_result_is_less_sharp_and_another_items_result_is_not_right() {
        let images = noise::randn(&[4, 3, 8, 8], 1, Kind::Float, Device::Cpu).unwrap() * 0.1;
        let of = |results: &Tensor| {
            let mut all = Results::default();
            all.add(results, &images).unwrap();
            all.add_seeds(&images, &(&images * 1.5)).unwrap();
            quality(7, &[all]).unwrap().unwrap()
        };
        let same = of(&images);
        assert_eq!((same.step, same.items, same.right), (7, 4, 1.0));
        assert!((same.sharpness - 1.0).abs() < 1e-6 && (same.distance - 0.5).abs() < 1e-6);
        assert!((of(&(&images * 0.5)).sharpness - 0.5).abs() < 1e-6);
        assert_eq!(of(&images.flip([0])).right, 0.0);
        assert_eq!(quality(7, &[Results::default()]).unwrap(), None);
    }

    #[test]
    fn pixels_are_those_of_an_image_and_flat_truths_have_no_sharpness() {
        let truths = noise::randn(&[4, 3, 8, 8], 1, Kind::Float, Device::Cpu).unwrap().sign();
        let of = |results: &Tensor, truths: &Tensor| {
            let mut all = Results::default();
            all.add(results, truths).unwrap();
            quality(7, &[all]).unwrap().unwrap()
        };
        assert_eq!(of(&(&truths * 1.5), &truths).sharpness, 1.0);
        let some = truths.copy();
        let _ = some.get(0).fill_(0.25);
        let found = of(&truths, &some);
        assert_eq!((found.sharpness, found.items), (1.0, 4));
        assert!(of(&truths, &(&truths * 1e-3)).sharpness.is_nan());
        let mut all = Results::default();
        let error = all.add(&(&truths * f64::NAN), &truths).unwrap_err();
        assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    }
}
