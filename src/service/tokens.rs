//! Prompts to tokens, and back, for those who only want to count or see them. The same way as a generation's, so the count
//! is what a generation would have. It costs its owner a request, as a generation does; no stream and no place in the
//! queue is taken.

use std::sync::Arc;

use super::rule::rule;
use super::{Served, Service, validate};
use crate::error::Result;
use crate::protocol::{GenerateRequest, Owner, Prompt, StreamId, TokenId};

/// Longest text of one request's tokens: four times the longest request, which could ask for sixty times its own length.
const TEXT_BYTES_MAX: usize = 16 << 20;

impl Service {
    /// The tokens that `request` would start from.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::ModelNotFound`]; [`crate::error::ErrorKind::InvalidRequest`] with the parameter at
    /// fault; [`crate::error::ErrorKind::RateLimited`]. A prompt longer than the context is none.
    pub async fn prompt_tokens(&self, request: GenerateRequest) -> Result<Vec<TokenId>> {
        self.try_prompt_tokens(request).await.inspect_err(|e| self.tell_rejected(e))
    }

    async fn try_prompt_tokens(&self, request: GenerateRequest) -> Result<Vec<TokenId>> {
        let served = self.models.generating(request.model.as_deref())?;
        validate::parameters(&request, self.limits(served))?;
        let owner = request.owner.clone();
        let _slot = self.quotas.begin(&owner, 1).inspect_err(|e| self.count_limited(e))?;
        Ok(self.tokenise(served, request, None).await?.1.0)
    }

    /// The text of `tokens`, without control tokens.
    ///
    /// # Errors
    /// As [`Self::prompt_tokens`]; [`crate::error::ErrorKind::InvalidRequest`] for a text that is too long.
    pub async fn text_of(&self, owner: &Arc<Owner>, model: Option<String>, tokens: Vec<TokenId>) -> Result<String> {
        let tokenizer = self.models.generating(model.as_deref())?.tokenizer.clone();
        let request = GenerateRequest { model, ..GenerateRequest::new(owner.clone(), Prompt::Tokens(tokens)) };
        let tokens = self.prompt_tokens(request).await?;
        let num_tokens = tokens.len();
        let decode = move || {
            let num_bytes: usize = tokens.iter().map(|token| tokenizer.token_bytes(*token).len()).sum();
            if num_bytes > TEXT_BYTES_MAX {
                let at_most = format!("must stand for at most {TEXT_BYTES_MAX} bytes");
                return Err(rule("tokens", at_most, num_bytes));
            }
            Ok(tokenizer.decode(&tokens))
        };
        self.sized(owner.tenant, num_tokens, decode).await?
    }

    /// Writes a prompt to the log, as the model sees it, if that is wanted.
    pub(super) fn log_prompt(&self, served: &Served, id: StreamId, prompt: &[TokenId]) {
        if self.config.log_prompts {
            let bytes: Vec<u8> = prompt.iter().flat_map(|t| served.tokenizer.token_bytes(*t)).copied().collect();
            tracing::info!(stream = %id, prompt = %String::from_utf8_lossy(&bytes), "prompt");
        }
    }
}
