//! Prompts to tokens for those who only want to count or see them. The same way as a generation's, so the count is
//! what a generation would have; no stream, no place in the queue and no quota is taken.

use super::{Service, validate};
use crate::error::{Error, Result};
use crate::protocol::{GenerateRequest, StreamId, TokenId};

impl Service {
    /// The tokens that `request` would start from.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::ModelNotFound`]; [`crate::error::ErrorKind::InvalidRequest`] with the parameter at
    /// fault. A prompt longer than the context is none.
    pub async fn prompt_tokens(&self, request: GenerateRequest) -> Result<Vec<TokenId>> {
        self.check_model(request.model.as_deref())?;
        validate::parameters(&request, self.limits())?;
        Ok(self.tokenise(request).await?.1.0)
    }

    /// The text of `tokens`, without control tokens. Many are worked on away from the async threads.
    ///
    /// # Errors
    /// None but a bug's.
    pub async fn text_of(&self, tokens: Vec<TokenId>) -> Result<String> {
        if tokens.len() <= self.config.inline_bytes_max {
            return Ok(self.tokenizer.decode(&tokens));
        }
        let permit = self.tokenising.clone().acquire_owned().await.map_err(|e| Error::internal(e.to_string()))?;
        let tokenizer = self.tokenizer.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            tokenizer.decode(&tokens)
        });
        task.await.map_err(|e| Error::internal(format!("detokenising failed: {e}")))
    }

    /// Writes a prompt to the log, as the model sees it, if that is wanted.
    pub(super) fn log_prompt(&self, id: StreamId, prompt: &[TokenId]) {
        if self.config.log_prompts {
            let bytes: Vec<u8> = prompt.iter().flat_map(|t| self.tokenizer.token_bytes(*t)).copied().collect();
            tracing::info!(stream = %id, prompt = %String::from_utf8_lossy(&bytes), "prompt");
        }
    }
}
