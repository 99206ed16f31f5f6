//! How to reach the hub: its address, its token, its patience. The environment variables of the hub's own tools
//! say all but the patience.

use std::path::PathBuf;
use std::time::Duration;

use hf_hub::Cache;

/// How to reach the hub.
#[derive(Clone)]
pub struct HubConfig {
    /// Address without a trailing slash.
    pub endpoint: String,
    /// Sent as bearer token to the endpoint's own scheme, host and port, and to no other that it redirects to.
    pub token: Option<String>,
    /// The cache of the hub's own tools.
    pub cache: PathBuf,
    /// Longest time for finding the host, and for connecting to it.
    pub connect_timeout: Duration,
    /// Longest silence: before an answer, or in the middle of one.
    pub silence_timeout: Duration,
}

impl HubConfig {
    /// `HF_ENDPOINT`, `HF_TOKEN` (else the token file in `HF_HOME`) and `HF_HOME`, with the hub's own defaults.
    pub fn from_env() -> Self {
        let var = |name| std::env::var(name).ok().map(|v| v.trim().to_owned()).filter(|v| !v.is_empty());
        let home = var("HF_HOME").map(PathBuf::from).or_else(|| Some(dirs::home_dir()?.join(".cache/huggingface")));
        // Without a home there is nothing cached and no token file; an empty path finds neither.
        let cache = home.unwrap_or_default().join("hub");
        let endpoint = var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: var("HF_TOKEN").or_else(|| Cache::new(cache.clone()).token()),
            cache,
            connect_timeout: Duration::from_secs(5),
            silence_timeout: Duration::from_secs(20),
        }
    }
}

/// Does not show the token.
impl std::fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("cache", &self.cache)
            .field("connect_timeout", &self.connect_timeout)
            .field("silence_timeout", &self.silence_timeout)
            .finish()
    }
}
