//! Files from the model hub, through hf-hub: its endpoint, its token, its addresses, its TLS.
//!
//! hf-hub's own downloader can be given neither a time limit nor a place to write to, and would keep a second copy of
//! each file in its cache. So only its request builder is used, and the transfer is ours: limits on every phase, each
//! byte hashed as it arrives, and a broken transfer goes on by a range request, in this start or in a later one. A
//! file that the hub's own tools already cached under `HF_HOME` is copied instead of fetched.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::cache::{CHUNK_BYTES, Expected, Partial};
use super::manifest::{HubSource, is_sha256};
use super::{Progress, ProgressEvent};
use crate::error::{Error, ErrorKind, Result};

/// Requests for one file before the source is given up; each continues where the one before broke off.
const ATTEMPTS_MAX: usize = 50;
/// Requests in a row that bring nothing before the source is given up.
const IDLE_ATTEMPTS_MAX: usize = 3;
/// Bytes of the longest repository listing that is read.
const LISTING_BYTES_MAX: u64 = 16 << 20;

/// How to reach the hub.
#[derive(Clone)]
pub struct HubConfig {
    /// Address without a trailing slash.
    pub endpoint: String,
    /// Sent as bearer token to the endpoint, and to no host that it redirects to.
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

/// What the hub says of a file before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubFile {
    pub(super) source: HubSource,
    pub(super) expected: Expected,
}

/// A client for one repository at one revision.
pub(super) struct Hub<'a> {
    config: &'a HubConfig,
    source: &'a HubSource,
    repo: ApiRepo,
}

impl<'a> Hub<'a> {
    pub(super) fn new(config: &'a HubConfig, source: &'a HubSource) -> Result<Self> {
        let api: Api = ApiBuilder::from_cache(Cache::new(config.cache.clone()))
            .with_endpoint(config.endpoint.clone())
            .with_token(config.token.clone())
            .with_user_agent("tallow", env!("CARGO_PKG_VERSION"))
            .with_progress(false)
            .build()
            .map_err(|e| Error::io("cannot make a client for the hub", e))?;
        Ok(Self { config, source, repo: api.repo(repo(source)) })
    }

    /// Names of the repository's GGUF files.
    pub(super) fn list_gguf(&self) -> Result<Vec<String>> {
        let address = format!(
            "{}/api/{}",
            self.config.endpoint,
            Repo::with_revision(self.source.repo.clone(), RepoType::Model, self.source.revision.clone()).api_url()
        );
        let answer = self.get(&address, None, Redirects::Follow)?;
        self.check_status(answer.status, &self.source.repo)?;
        let info: RepoInfo =
            serde_json::from_reader(answer.body.take(LISTING_BYTES_MAX)).map_err(|e| Error::io(&address, e))?;
        let mut files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        files.retain(|f| f.to_ascii_lowercase().ends_with(".gguf"));
        files.sort();
        Ok(files)
    }

    /// Size, hash and exact revision of the file, as far as the hub names them. The hash stands in a header of the
    /// first answer only, before the redirect to the storage.
    pub(super) fn describe(&self) -> Result<HubFile> {
        let answer = self.get(&self.repo.url(&self.source.file), Some("bytes=0-0"), Redirects::Stop)?;
        if !(300..400).contains(&answer.status) {
            self.check_status(answer.status, &self.what())?;
        }
        let header = |name: &str| answer.header(name).map(str::to_owned);
        let etag = header("x-linked-etag").or_else(|| header("etag")).map(|e| e.replace(['"', '\\'], ""));
        let size = header("x-linked-size").or_else(|| header("content-range")?.rsplit('/').next().map(str::to_owned));
        let mut source = self.source.clone();
        // A commit pins what is fetched to what was described, even if the branch moves in between.
        if let Some(commit) = header("x-repo-commit") {
            let pinned = HubSource { revision: commit, ..source.clone() };
            if pinned.check().is_ok() {
                source = pinned;
            }
        }
        let expected =
            Expected { size_bytes: size.and_then(|s| s.parse().ok()), sha256: etag.filter(|e| is_sha256(e)) };
        Ok(HubFile { source, expected })
    }

    /// Appends what is missing of the file to `partial`.
    pub(super) fn fetch(&self, expected: &Expected, partial: &mut Partial, progress: Progress<'_>) -> Result<()> {
        if self.copy_cached(expected, partial, progress)? {
            return Ok(());
        }
        if expected.size_bytes.is_some_and(|size| partial.len() > size) || expected.sha256.is_none() {
            partial.restart()?;
        }
        let mut idle = 0;
        for _ in 0..ATTEMPTS_MAX {
            if partial.len() > 0 && expected.size_bytes == Some(partial.len()) {
                return Ok(());
            }
            let before = partial.len();
            let Transfer::Broken(cause) = self.fetch_rest(expected, partial, progress)? else { return Ok(()) };
            idle = if partial.len() > before { 0 } else { idle + 1 };
            if idle == IDLE_ATTEMPTS_MAX {
                return Err(Error::new(ErrorKind::Io, cause));
            }
            progress(ProgressEvent::Message(format!("{cause}; going on from {} bytes", partial.len())));
        }
        Err(Error::new(ErrorKind::Io, format!("broke off {ATTEMPTS_MAX} times, last at {} bytes", partial.len())))
    }

    /// One request for what is missing.
    fn fetch_rest(&self, expected: &Expected, partial: &mut Partial, progress: Progress<'_>) -> Result<Transfer> {
        let range = (partial.len() > 0).then(|| format!("bytes={}-", partial.len()));
        let answer = self.get(&self.repo.url(&self.source.file), range.as_deref(), Redirects::Follow)?;
        let total: Option<u64> = match answer.status {
            206 => {
                let content_range = answer.header("content-range").unwrap_or_default();
                let (start, total) = parse_content_range(content_range)
                    .ok_or_else(|| Error::io("the hub sent a bad content-range", content_range))?;
                if start != partial.len() {
                    partial.restart()?;
                    return Ok(Transfer::Broken(format!("the hub sent a part that begins at {start}")));
                }
                total
            }
            416 => {
                partial.restart()?;
                return Ok(Transfer::Broken("the hub refused the range".to_owned()));
            }
            status => {
                self.check_status(status, &self.what())?;
                partial.restart()?;
                answer.header("content-length").and_then(|v| v.parse().ok())
            }
        };
        if let (Some(total), Some(size)) = (total, expected.size_bytes)
            && total != size
        {
            return Err(Error::new(ErrorKind::Io, format!("has {total} bytes on the hub, must be {size}")));
        }
        let total = total.or(expected.size_bytes);
        let mut body = answer.body;
        copy(&mut body, partial, total, progress)
    }

    /// Copies the file from the hub's own cache, if it is there with the right size. False if not.
    fn copy_cached(&self, expected: &Expected, partial: &mut Partial, progress: Progress<'_>) -> Result<bool> {
        let Some(path) = Cache::new(self.config.cache.clone()).repo(repo(self.source)).get(&self.source.file) else {
            return Ok(false);
        };
        let right_size = expected.size_bytes.is_some()
            && std::fs::metadata(&path).is_ok_and(|stat| Some(stat.len()) == expected.size_bytes);
        if !right_size || expected.sha256.is_none() {
            return Ok(false);
        }
        let Ok(mut file) = File::open(&path) else { return Ok(false) };
        progress(ProgressEvent::Message(format!("copying from {}", path.display())));
        partial.restart()?;
        let transfer = copy(&mut file, partial, expected.size_bytes, progress)?;
        if matches!(transfer, Transfer::Complete) && expected.sha256.as_ref() == Some(&partial.sha256_so_far()) {
            return Ok(true);
        }
        progress(ProgressEvent::Message(format!("{} is damaged, fetching instead", path.display())));
        partial.restart()?;
        Ok(false)
    }

    fn get(&self, address: &str, range: Option<&str>, redirects: Redirects) -> Result<Answer> {
        let mut request = self.repo.info_request().uri(address).header("accept-encoding", "identity");
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let config = request
            .config()
            .http_status_as_error(false)
            .timeout_resolve(Some(self.config.connect_timeout))
            .timeout_connect(Some(self.config.connect_timeout))
            .timeout_recv_response(Some(self.config.silence_timeout))
            .timeout_per_read(Some(self.config.silence_timeout));
        let config = match redirects {
            Redirects::Follow => config,
            Redirects::Stop => config.max_redirects(0),
        };
        let response = config.build().call().map_err(|e| Error::io(format!("cannot reach {address}"), e))?;
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        Ok(Answer {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(|(k, v)| (k.as_str().to_owned(), text(v.as_bytes()))).collect(),
            body: Box::new(response.into_body().into_reader()),
        })
    }

    fn what(&self) -> String {
        format!("{} in {}", self.source.file, self.source.repo)
    }

    fn check_status(&self, status: u16, what: &str) -> Result<()> {
        let token = if self.config.token.is_some() { "the token may not allow it" } else { "HF_TOKEN is not set" };
        let message = match status {
            200..300 => return Ok(()),
            401 | 403 => format!("{status}: no access to {what} ({token})"),
            404 => format!("404: no {what} at revision {}", self.source.revision),
            _ => format!("status {status} for {what}"),
        };
        Err(Error::new(ErrorKind::Io, message))
    }
}

/// What to do with an answer that points elsewhere.
#[derive(Clone, Copy)]
enum Redirects {
    Follow,
    Stop,
}

/// The hub's answer to one request.
struct Answer {
    status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: Box<dyn Read>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

/// How one request ended.
enum Transfer {
    Complete,
    Broken(String),
}

fn repo(source: &HubSource) -> Repo {
    Repo::with_revision(source.repo.clone(), RepoType::Model, source.revision.clone())
}

/// Moves `from` to the end of `partial`, but never beyond `total`.
fn copy(from: &mut dyn Read, partial: &mut Partial, total: Option<u64>, progress: Progress<'_>) -> Result<Transfer> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        progress(ProgressEvent::Bytes { done: partial.len(), total });
        let n = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Ok(Transfer::Broken(e.to_string())),
        };
        if total.is_some_and(|total| partial.len() + n as u64 > total) {
            return Err(Error::new(ErrorKind::Io, format!("sent more than the {} bytes it named", total.unwrap_or(0))));
        }
        partial.write(&chunk[..n])?;
    }
    match total {
        Some(total) if partial.len() < total => {
            Ok(Transfer::Broken(format!("the transfer ended at {} of {total} bytes", partial.len())))
        }
        _ => Ok(Transfer::Complete),
    }
}

/// `bytes START-END/TOTAL`; the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}
