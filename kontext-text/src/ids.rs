//! Validation of an encoder's token ids.

use kontext_core::{Error, Kind, Result, Tensor, check};

/// Checks ids [B, T] (i64, within the vocabulary, at least one) and returns the sizes B and T.
///
/// An id outside the embedding table would destroy the CUDA context of the whole process, so this reads the
/// ids' minimum and maximum, which is cheap: a tokenizer's ids are on the host.
pub(crate) fn check(ids: &Tensor, vocab_size: i64) -> Result<[i64; 2]> {
    let sizes = check::dims("ids", ids, "[B, T]")?;
    if ids.kind() != Kind::Int64 {
        return Err(Error::invalid(
            "ids",
            "token ids of kind Int64",
            format!("{:?}", ids.kind()),
        ));
    }
    if ids.numel() == 0 {
        return Err(Error::Shape {
            tensor: "ids",
            expected: "[B, T] with at least one token",
            got: ids.size(),
        });
    }
    let (low, high) = (ids.f_min()?.f_int64_value(&[])?, ids.f_max()?.f_int64_value(&[])?);
    let outside = if low < 0 {
        Some(low)
    } else {
        (high >= vocab_size).then_some(high)
    };
    match outside {
        Some(id) => Err(Error::invalid(
            "token id",
            format!("0 to {}, the model's vocabulary", vocab_size - 1),
            id,
        )),
        None => Ok(sizes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_outside_the_vocabulary_is_an_error_that_names_it() {
        let ids = |values: &[i64]| Tensor::from_slice(values).unsqueeze(0);
        assert_eq!(check(&ids(&[0, 9]), 10).unwrap(), [1, 2]);
        let error = check(&ids(&[0, 10]), 10).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid token id: expected 0 to 9, the model's vocabulary, got 10"
        );
        assert!(check(&ids(&[-1]), 10).is_err());
        assert!(check(&ids(&[]), 10).is_err());
    }
}
