//! Training of the other parts of a new model: an autoencoder, text encoders with their tokenizers; and
//! initial weights.

mod autoencoder;
mod corpus;
mod initial;
mod text;
mod text_recipe;
mod vocabulary;

pub use autoencoder::{AutoencoderEvent, AutoencoderRecipe, AutoencoderReport, AutoencoderTrainer};
pub use initial::{initial, initial_transformer};
pub use text::{TextReport, train_text};
pub use text_recipe::TextRecipe;
pub use vocabulary::write_tokenizers;
