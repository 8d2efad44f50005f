//! Plans as text.

use std::fmt;

use kontext_dit::StepWork;
use kontext_sampler::ids::Origin;

use crate::Plan;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, r) in self.references.iter().enumerate() {
            let Origin { t, y, x } = r.origin;
            let resize = if r.input == r.fitted {
                "as it is".to_owned()
            } else {
                format!("stretched to {} by Lanczos", r.fitted)
            };
            writeln!(
                f,
                "reference {}: {}, {resize}, {}, {} tokens at (t {t}, y {y}, x {x})",
                index + 1,
                r.input,
                r.grid,
                r.grid.tokens()
            )?;
        }
        if let Some(mask) = &self.mask {
            let seen = match (mask.context.has_source(), self.references.len()) {
                (true, 1) => "itself",
                (true, _) => "itself and the other references",
                (false, _) => "the other references only",
            };
            writeln!(f, "mask:        in {} of {}, next to {seen}", mask.region, mask.canvas)?;
        }
        writeln!(
            f,
            "target:      {}, {}, {} tokens",
            self.target.size(),
            self.target,
            self.target.tokens()
        )?;
        if self.decoded() == self.target.size() {
            writeln!(f, "output:      {}", self.output)?;
        } else {
            writeln!(
                f,
                "output:      {}, resized from {} by Lanczos",
                self.output,
                self.target.size()
            )?;
        }
        let tokens = (self.text_tokens, self.target.tokens(), self.reference_tokens());
        writeln!(
            f,
            "sequence:    {} tokens ({} text + {} target + {} reference)",
            self.tokens(),
            tokens.0,
            tokens.1,
            tokens.2
        )?;
        let (steps, first) = (
            self.schedule.steps(),
            self.schedule.sigmas().first().copied().unwrap_or_default(),
        );
        let shift = self.shift.map_or_else(String::new, |shift| format!(", shift {shift}"));
        writeln!(
            f,
            "steps:       {steps} from sigma {first:.3}{shift}, {} model run(s) each",
            self.runs_per_step
        )?;
        match (&self.reference_reuse, self.step_cache.is_off()) {
            (None, true) => {}
            (None, false) => writeln!(f, "step cache:  {}, {}", self.step_cache, computed(self))?,
            (Some(reuse), true) => writeln!(f, "reuse of:    {reuse}, {}", computed(self))?,
            (Some(reuse), false) => {
                writeln!(
                    f,
                    "step cache:  {}, reuse of {reuse}, {}",
                    self.step_cache,
                    computed(self)
                )?;
            }
        }
        writeln!(
            f,
            "sampler:     {}, {} model evaluations",
            self.sampler,
            self.evaluations()
        )?;
        if !self.by_loras.is_empty() {
            writeln!(f, "by a LoRA:   {}", self.by_loras.join(", "))?;
        }
        match (self.guidance, &self.guidance_schedule) {
            (Some(_), Some(schedule)) => writeln!(f, "guidance:    {schedule}, by step")?,
            (Some(guidance), None) => writeln!(f, "guidance:    {guidance}")?,
            (None, _) => writeln!(f, "guidance:    none (the model embeds none)")?,
        }
        if self.prompt_weights {
            writeln!(f, "prompts:     parentheses weigh words")?;
        }
        if let Some(attention) = self.attention {
            writeln!(f, "attention:   {attention}")?;
        }
        writeln!(f, "arithmetic:  {}{}", self.compute, fp8_note(self.fp8))?;
        write!(f, "images:      {} ({:?} conventions)", self.batch, self.conformance)?;
        if let Some(threads) = self.threads {
            write!(f, "\nthreads:     {threads}")?;
        }
        self.warnings
            .iter()
            .try_for_each(|warning| write!(f, "\nwarning:     {warning}"))
    }
}

/// Returns the steps that a plan with a step cache computes, and their share of the operations.
fn computed(plan: &Plan) -> String {
    let share = |flops: u64| 100.0 * flops as f64 / plan.flops.exact.max(1) as f64;
    let (least, most) = (share(plan.flops.least), share(plan.flops.most));
    let Some(work) = &plan.work else {
        return format!("decides while running; {least:.0} to {most:.0} % of the operations");
    };
    let steps = |of: StepWork| {
        let steps = (0..work.len()).filter(|step| work[*step] == of);
        steps.map(|step| (step + 1).to_string()).collect::<Vec<_>>().join(" ")
    };
    let reduced = match steps(StepWork::WithoutReferences) {
        none if none.is_empty() => none,
        steps => format!(", without references {steps}"),
    };
    let full = steps(StepWork::Computed);
    format!("computes steps {full}{reduced}; {most:.0} % of the operations")
}

/// Returns the addition to the kinds of arithmetic of a run with products in fp8.
fn fp8_note(fp8: bool) -> &'static str {
    if fp8 { ", products of the blocks in fp8" } else { "" }
}
