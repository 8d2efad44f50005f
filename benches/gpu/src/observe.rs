//! Pipeline runs with a fallible observer.

use std::ops::ControlFlow;

use kontext::{Event, Output, Pipeline, Request};

/// Runs a request; an error of `observe` stops the run and is returned.
pub(crate) fn observed(
    pipe: &Pipeline,
    request: &Request,
    mut observe: impl FnMut(&Event<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<Output> {
    let mut failed = None;
    let output = pipe.run_with(request, |event| match observe(&event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Some(error);
            ControlFlow::Break(())
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(output?),
    }
}
