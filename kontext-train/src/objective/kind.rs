//! Reading and writing of an objective by its `kind`, which flow objectives may leave out.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{AdversarialObjective, FlowObjective, GuidedObjective, Objective};

const KIND: &str = "kind";
/// The kind of a table without one.
const DEFAULT: &str = "flow";

/// An objective with its kind.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
enum Tagged {
    Flow(FlowObjective),
    Adversarial(Box<AdversarialObjective>),
    Guided(GuidedObjective),
}

impl Serialize for Objective {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Flow(flow) => flow.serialize(serializer),
            Self::Adversarial(adversarial) => Tagged::Adversarial(adversarial.clone()).serialize(serializer),
            Self::Guided(guided) => Tagged::Guided(*guided).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Objective {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Table)
    }
}

struct Table;

impl<'de> Visitor<'de> for Table {
    type Value = Objective;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the table of an objective")
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Objective, A::Error> {
        let table = WithKind {
            table,
            kind: Kind::Missing,
        };
        Ok(match Tagged::deserialize(MapAccessDeserializer::new(table))? {
            Tagged::Flow(flow) => Objective::Flow(flow),
            Tagged::Adversarial(adversarial) => Objective::Adversarial(adversarial),
            Tagged::Guided(guided) => Objective::Guided(guided),
        })
    }
}

/// A table with an entry `kind`: its own, or the default one at its end.
struct WithKind<A> {
    table: A,
    kind: Kind,
}

enum Kind {
    Missing,
    /// The value of the added entry is next.
    Added,
    Known,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WithKind<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        let key = match self.table.next_key::<String>()? {
            Some(key) => {
                if key == KIND {
                    self.kind = Kind::Known;
                }
                key
            }
            None if matches!(self.kind, Kind::Missing) => {
                self.kind = Kind::Added;
                KIND.to_owned()
            }
            None => return Ok(None),
        };
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        if matches!(self.kind, Kind::Added) {
            self.kind = Kind::Known;
            return seed.deserialize(DEFAULT.into_deserializer());
        }
        self.table.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_without_a_kind_is_of_the_flow_objective_and_is_written_without_it() {
        let objective: Objective = toml::from_str("guidance = 2.5\ndensity.kind = 'uniform'").unwrap();
        assert_eq!((objective.guidance(), objective.flow().is_some()), (2.5, true));
        let text = toml::to_string(&objective).unwrap();
        assert!(!text.lines().any(|line| line == "kind = \"flow\""), "{text}");
        assert_eq!(toml::from_str::<Objective>(&text).unwrap(), objective);
        assert_eq!(serde_json::from_str::<Objective>("{}").unwrap(), Objective::default());
    }

    #[test]
    fn fields_of_another_kind_are_refused_by_name() {
        for text in ["head_width = 64", "kind = 'flow'\nhead_width = 64"] {
            let error = toml::from_str::<Objective>(text).unwrap_err().to_string();
            assert!(error.contains("`head_width`"), "{error}");
        }
        let error = toml::from_str::<Objective>("kind = 'adversarial'\nweighting = 'none'").unwrap_err();
        assert!(error.to_string().contains("`weighting`"), "{error}");
        let error = toml::from_str::<Objective>("kind = 'flows'").unwrap_err().to_string();
        assert!(error.contains("`flows`") && error.contains("`adversarial`"), "{error}");
    }
}
