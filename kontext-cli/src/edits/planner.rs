//! Checks of edits before the model is loaded: sizes by the headers of images, and the plan of each kind of request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kontext::image::RgbImage;
use kontext::io::OpenOptions;
use kontext::{PipelineBuilder, Plan, Request, io};
use kontext_core::images::dimensions;

use super::job::{Job, written};

/// Plans of a model in a folder, each made once for requests of one shape.
#[derive(Debug)]
pub(super) struct Planner<'a> {
    builder: &'a PipelineBuilder,
    model: &'a Path,
    sizes: BTreeMap<PathBuf, Result<(u32, u32), String>>,
    plans: BTreeMap<String, Result<Plan, String>>,
}

impl<'a> Planner<'a> {
    /// Returns a planner that has planned nothing.
    pub(super) fn new(builder: &'a PipelineBuilder, model: &'a Path) -> Self {
        Self {
            builder,
            model,
            sizes: BTreeMap::new(),
            plans: BTreeMap::new(),
        }
    }

    /// Plans an edit and sets its shape.
    ///
    /// # Errors
    /// The problem: of an image, of the request, or of the results' names.
    pub(super) fn plan(&mut self, job: &mut Job) -> Result<&Plan, String> {
        let sizes = job
            .images
            .iter()
            .map(|path| self.size(path))
            .collect::<Result<Vec<_>, _>>()?;
        let mut request = job.request.clone();
        // Texts change neither sizes nor steps.
        let texts = [
            &mut request.prompt_2,
            &mut request.negative_prompt,
            &mut request.negative_prompt_2,
        ];
        texts
            .into_iter()
            .flatten()
            .chain([&mut request.prompt])
            .for_each(String::clear);
        request.seed = None;
        let fields = written(&request).map_err(|error| error.to_string())?;
        job.shape = format!("{sizes:?} {}", serde_json::Value::Object(fields));
        let plan = self.plans.entry(job.shape.clone());
        let plan = plan.or_insert_with(|| planned(self.builder, self.model, request, &sizes));
        let plan = plan.as_ref().map_err(Clone::clone)?;
        for name in &job.names {
            io::check_size(name, plan.output).map_err(in_line)?;
        }
        Ok(plan)
    }

    fn size(&mut self, path: &Path) -> Result<(u32, u32), String> {
        if let Some(size) = self.sizes.get(path) {
            return size.clone();
        }
        let size = dimensions(path).map_err(in_line);
        let size = size.and_then(|(width, height)| {
            if u64::from(width) * u64::from(height) > OpenOptions::MAX_PIXELS {
                let most = OpenOptions::MAX_PIXELS;
                return Err(format!(
                    "{}: {width}x{height} pixels, at most {most} can be opened",
                    path.display()
                ));
            }
            Ok((width, height))
        });
        self.sizes.insert(path.to_owned(), size.clone());
        size
    }
}

fn planned(
    builder: &PipelineBuilder,
    model: &Path,
    mut request: Request,
    sizes: &[(u32, u32)],
) -> Result<Plan, String> {
    // Of zeros, whose pages the system does not provide before they are written.
    request.images = sizes
        .iter()
        .map(|(width, height)| Arc::new(RgbImage::new(*width, *height)))
        .collect();
    builder.plan(model, &request).map_err(in_line)
}

/// Formats an error and its causes in one line.
fn in_line(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}
