//! The settings of a recipe that have no effect with its model and its data.

use std::collections::BTreeSet;

use kontext_dit::DitConfig;

use super::recipe::Recipe;
use crate::dataset::{Dataset, longest_prefix, weight_of};
use crate::objective::{AdversarialObjective, FlowObjective, Objective};
use crate::warning::RecipeWarning;

/// Returns the warnings of a recipe for a model and the examples of its data.
pub(super) fn warnings(recipe: &Recipe, config: &DitConfig, dataset: &Dataset) -> Vec<RecipeWarning> {
    let Recipe {
        data, objective, every, ..
    } = recipe;
    let mut warnings = Vec::new();
    warnings.extend(RecipeWarning::of_rate(&recipe.rate, recipe.steps));
    let (guidance, usual) = (objective.guidance(), usual_guidance(objective));
    if !config.guidance_embed && guidance != usual {
        warnings.push(RecipeWarning::GuidanceIgnored { guidance });
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

/// Returns the default guidance of an objective.
fn usual_guidance(objective: &Objective) -> f64 {
    match objective {
        Objective::Flow(_) => FlowObjective::default().guidance,
        Objective::Adversarial(_) => AdversarialObjective::default().guidance,
    }
}
