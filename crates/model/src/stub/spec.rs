//! The stub as a model that can be served: `stub`, or `stub:MS` with MS milliseconds per step. It serves tests and
//! measurements of everything but the model.

use std::sync::Arc;
use std::time::Duration;

use super::{StubConfig, StubModel};
use crate::Model;
use crate::load::OpenModel;
use crate::text::Tokenizer;
use tallow_stream::error::{Error, Result};

/// ChatML.
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// The stub that `spec` names, if it names one.
///
/// # Errors
/// If what follows `stub:` is not a number of milliseconds.
pub fn from_spec(spec: &str) -> Result<Option<OpenModel>> {
    let step_ms = match spec.strip_prefix("stub") {
        Some("") => 0.0,
        Some(rest) if rest.starts_with(':') => match rest[1..].parse::<f64>() {
            Ok(ms) if (0.0..=60_000.0).contains(&ms) => ms,
            _ => {
                let message = format!("the stub's step must be 0 to 60000 milliseconds, got {:?}", &rest[1..]);
                return Err(Error::invalid("model.name", message));
            }
        },
        _ => return Ok(None),
    };
    let config = StubConfig {
        step_delay: Duration::from_secs_f64(step_ms / 1000.0),
        eos_probability: 0.001,
        ..StubConfig::default()
    };
    let spec = StubModel::new(config.clone()).spec().clone();
    let factory = StubModel::factory(config);
    Ok(Some(OpenModel {
        spec,
        tokenizer: Arc::new(Tokenizer::byte_level()),
        chat_template: Some(TEMPLATE.to_owned()),
        bos_text: String::new(),
        eos_text: String::new(),
        loader: Arc::new(move || Ok(factory.clone())),
        memory_bytes: 1 << 20,
        description: format!("no model, {step_ms} ms per step"),
        source: None,
    }))
}
