//! OpenAI's wires: Chat Completions and the list of models.

mod chat;
mod chat_chunks;
mod chat_types;
mod models;

pub use chat::{cancel, create, early_error};
pub use models::{get as get_model, list as list_models};
