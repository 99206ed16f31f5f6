//! OpenAI's wires: Chat Completions, the older Completions, embeddings, and the list of models.

mod chat;
mod chat_answer;
mod chat_chunks;
mod chat_types;
mod completion_chunks;
mod completion_types;
mod completions;
mod embeddings;
mod models;
mod usage_sum;

pub(crate) use chat::{cancel, create};
pub(crate) use completions::create as create_text;
pub(crate) use embeddings::create as create_embeddings;
pub(crate) use models::{change as change_model, get as get_model, list as list_models};
