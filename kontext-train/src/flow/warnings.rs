//! The settings of a recipe that have no effect with its model and its data.

use std::collections::BTreeSet;

use kontext_dit::DitConfig;

use super::recipe::Recipe;
use crate::dataset::{Dataset, longest_prefix, weight_of};
use crate::objective::{AdversarialObjective, FlowObjective, GuidedObjective, Objective};
use crate::warning::RecipeWarning;

/// Returns the warnings of a recipe for a model and the examples of its data.
pub(super) fn warnings(recipe: &Recipe, config: &DitConfig, dataset: &Dataset) -> Vec<RecipeWarning> {
    let Recipe {
        data, objective, every, ..
    } = recipe;
    let mut warnings = Vec::new();
    warnings.extend(RecipeWarning::of_rate(&recipe.rate, recipe.steps));
    let (guidance, usual) = guidance(objective);
    if !config.guidance_embed && guidance != usual {
        warnings.push(RecipeWarning::GuidanceIgnored { guidance });
    }
    let unused = objective.adversarial().map(AdversarialObjective::without_effect);
    let ignored = |(weight, fields)| RecipeWarning::CriticIgnored { fields, weight };
    warnings.extend(unused.unwrap_or_default().into_iter().map(ignored));
    if objective
        .adversarial()
        .is_some_and(AdversarialObjective::has_unused_warmup)
    {
        warnings.push(RecipeWarning::WarmupSharesIgnored);
    }
    let items = || dataset.items.iter().filter(|item| item.split == data.split);
    let trained = || items().filter(|item| weight_of(item, &data.weights) > 0.0);
    if objective.drop_context() > 0.0 && trained().all(|item| item.sources.is_empty()) {
        warnings.push(RecipeWarning::DropContextIgnored);
    }
    if objective.drop_prompt() > 0.0 && trained().all(|item| item.instruction.is_empty()) {
        warnings.push(RecipeWarning::DropPromptIgnored);
    }
    let used: BTreeSet<&String> = items()
        .filter_map(|item| longest_prefix(item, &data.weights))
        .map(|(prefix, _)| prefix)
        .collect();
    let unused = data.weights.keys().filter(|prefix| !used.contains(prefix));
    warnings.extend(unused.map(|prefix| RecipeWarning::WeightIgnored { prefix: prefix.clone() }));
    let wanted = every.validate > 0 || every.sample > 0;
    if wanted && !dataset.items.iter().any(|item| item.split == data.validation) {
        let split = data.validation.clone();
        warnings.push(RecipeWarning::NothingHeldOut { split });
    }
    warnings
}

/// Returns the embedded guidance of an objective, and its default. The objective `guided` only has that of
/// the teacher: a student without the embedding gets one.
fn guidance(objective: &Objective) -> (f64, f64) {
    match objective {
        Objective::Flow(flow) => (flow.guidance, FlowObjective::default().guidance),
        Objective::Adversarial(adversarial) => (adversarial.guidance, AdversarialObjective::default().guidance),
        Objective::Guided(guided) => (guided.teacher_guidance, GuidedObjective::default().teacher_guidance),
    }
}
