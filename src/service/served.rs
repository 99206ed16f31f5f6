//! One model as it is served: everything that a request for it needs before the engine has it. This stays in memory while the
//! weights come and go (`models`), so a request is checked and tokenised, and waits in line, before its model is loaded.

use std::sync::Arc;

use super::{Backend, ChatTemplate};
use crate::cache::BLOCK_SIZE;
use crate::metrics::Metrics;
use crate::model::ModelSpec;
use crate::sampling::grammar::{GrammarCompiler, GrammarLimits};
use crate::text::{CallSyntax, ReasoningSyntax, Tokenizer};

/// What a model is called, and how its answers are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedConfig {
    /// The name requests use for the model.
    pub name: Arc<str>,
    /// Other names that requests may use for it.
    pub aliases: Vec<String>,
    /// What texts follow from besides their requests: the weights, and how they are computed with. A stored stream of
    /// another one cannot be gone on with.
    pub fingerprint: u64,
    /// The form of the model's calls; `None` takes the template's.
    pub(crate) call_syntax: Option<CallSyntax>,
    /// The form of its reasoning, `Some(None)` for none; `None` takes the template's.
    pub(crate) reasoning_syntax: Option<Option<ReasoningSyntax>>,
    /// Whether it is never unloaded to make room or for being idle.
    pub(crate) is_pinned: bool,
}

impl ServedConfig {
    /// A model of this name, with nothing said about it.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            aliases: Vec::new(),
            fingerprint: 0,
            call_syntax: None,
            reasoning_syntax: None,
            is_pinned: false,
        }
    }
}

/// A model, and where it runs.
pub struct Served {
    pub(super) config: ServedConfig,
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Option<Arc<ChatTemplate>>,
    pub(super) spec: ModelSpec,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) grammars: Arc<GrammarCompiler>,
    pub(super) metrics: Arc<Metrics>,
    /// Whether it makes vectors of texts, and nothing else.
    pub(super) only_embeds: bool,
}

impl Served {
    /// Puts the parts together. `template` is the model's own; without one, chats are refused.
    pub fn new(
        config: ServedConfig,
        tokenizer: Arc<Tokenizer>,
        template: Option<ChatTemplate>,
        spec: ModelSpec,
        backend: Arc<dyn Backend>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let template = template.map(|template| Arc::new(as_configured(template, &config)));
        let own = || GrammarCompiler::new(tokenizer.clone(), GrammarLimits::default(), metrics.clone());
        let grammars = backend.grammars().unwrap_or_else(own);
        Self { config, tokenizer, template, spec, backend, grammars, metrics, only_embeds: false }
    }

    /// A model that embeds texts and goes on from none.
    pub fn encoder(
        config: ServedConfig,
        tokenizer: Arc<Tokenizer>,
        spec: ModelSpec,
        backend: Arc<dyn Backend>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { only_embeds: true, ..Self::new(config, tokenizer, None, spec, backend, metrics) }
    }

    /// Its name in requests and answers.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether requests may use this name for it.
    pub fn answers_to(&self, name: &str) -> bool {
        *self.config.name == *name || self.config.aliases.iter().any(|alias| alias == name)
    }

    /// The vocabulary, for spelling tokens in responses.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Whether it can chat: the model brought a template.
    pub(crate) fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Whether it embeds texts and goes on from none.
    pub fn only_embeds(&self) -> bool {
        self.only_embeds
    }

    /// Longest sequence a request can have: the model's context, or less if the KV memory is smaller.
    pub(crate) fn context_len(&self) -> usize {
        self.spec.max_model_len.min(self.spec.num_blocks.saturating_mul(BLOCK_SIZE))
    }

    /// Where it runs.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").field("config", &self.config).field("spec", &self.spec).finish_non_exhaustive()
    }
}

fn as_configured(mut template: ChatTemplate, config: &ServedConfig) -> ChatTemplate {
    if let Some(syntax) = config.call_syntax {
        template = template.with_call_syntax(syntax);
    }
    if let Some(syntax) = config.reasoning_syntax {
        template = template.with_reasoning_syntax(syntax);
    }
    template
}
