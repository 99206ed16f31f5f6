//! Prompts to tokens for those who only want to count or see them. The same way as a generation's, so the count is
//! what a generation would have; no stream, no place in the queue and no quota is taken.

use super::{Service, validate};
use crate::error::Result;
use crate::protocol::{GenerateRequest, TokenId};

impl Service {
    /// The tokens that `request` would start from.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::ModelNotFound`]; [`crate::error::ErrorKind::InvalidRequest`] with the parameter at
    /// fault. A prompt longer than the context is none.
    pub async fn prompt_tokens(&self, request: GenerateRequest) -> Result<Vec<TokenId>> {
        self.check_model(request.model.as_deref())?;
        validate::parameters(&request, self.limits())?;
        Ok(self.tokenise(request).await?.1)
    }
}
