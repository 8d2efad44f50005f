//! What a method trains: the tensors, the model that they are part of, and the file that they become.

use std::collections::BTreeMap;
use std::path::Path;

use kontext::save_part;
use kontext_core::{Device, Error, Kind, Result, Tensor};
use kontext_dit::Dit;

use crate::base::Base;
use crate::{Method, Params};

/// Trainable tensors and the transformer over them.
#[derive(Debug)]
pub(crate) struct Trained {
    pub(crate) params: Params,
    pub(crate) dit: Dit,
}

impl Trained {
    pub(crate) fn new(method: &Method, base: &Base, seed: u64, device: Device, kind: Kind) -> Result<Self> {
        let _ = (seed, kind);
        match method {
            Method::Full => {
                let params = Params::new(&base.transformer_tensors()?, device)?;
                let dit = Dit::new(&params.weights().device(device), &base.config, |_| ())?;
                Ok(Self { params, dit })
            }
            Method::Lora(_) => Err(Error::invalid("method", "full", "lora")),
        }
    }

    /// Writes the values into the run's folder.
    pub(crate) fn export(
        &self,
        out: &Path,
        values: Vec<(String, Tensor)>,
        base: &Base,
        _facts: BTreeMap<String, String>,
    ) -> Result<()> {
        save_part::transformer(out, values, &base.config)
    }
}
