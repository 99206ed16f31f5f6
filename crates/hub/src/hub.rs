//! Files from the model hub, through hf-hub: its endpoint, its token, its addresses, its TLS. What the hub says is a
//! claim: names are checked, a file without a size is refused, and one with a size gets no byte more.
//!
//! hf-hub's own downloader can be given neither a time limit nor a place to write to, and would keep a second copy of
//! each file in its cache. So only its request builder is used, and the transfer is ours: limits on every phase, each
//! byte hashed as it arrives, and a broken transfer goes on by a range request, in this start or in a later one. A
//! file that the hub's own tools already cached under `HF_HOME` is copied instead of fetched.

use std::fs::File;
use std::io::Read;

use hf_hub::api::RepoInfo;
use hf_hub::{Cache, Repo, RepoType};

use super::cache::{CHUNK_BYTES, Expected, Partial};
use super::client::{HubClient, Redirects};
use super::config::HubConfig;
use super::manifest::{HubSource, is_sha256};
use super::{Progress, ProgressEvent};
use tallow_stream::error::{Error, ErrorKind, Result};
use tallow_stream::excerpt;

/// Requests for one file before the source is given up; each continues where the one before broke off.
const ATTEMPTS_MAX: usize = 50;
/// Requests in a row that bring nothing before the source is given up.
const IDLE_ATTEMPTS_MAX: usize = 3;
/// Bytes of the longest repository listing that is read.
const LISTING_BYTES_MAX: u64 = 16 << 20;
/// Files of a repository; the largest ones on the hub have some 100,000.
const LISTING_FILES_MAX: usize = 250_000;
/// The header in which the hub names the size of a file before it redirects to the storage.
const SIZE_HEADER: &str = "x-linked-size";

/// What the hub says of a file before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubFile {
    pub(super) source: HubSource,
    pub(super) expected: Expected,
}

/// One repository at one revision.
pub(super) struct Hub<'a> {
    config: &'a HubConfig,
    source: &'a HubSource,
    client: HubClient<'a>,
}

impl<'a> Hub<'a> {
    pub(super) fn new(config: &'a HubConfig, source: &'a HubSource) -> Result<Self> {
        Ok(Self { config, source, client: HubClient::new(config, repo(source))? })
    }

    /// The repository's GGUF files.
    ///
    /// # Errors
    /// If the hub does not list them, or one has a name that cannot be part of a path and of an address.
    pub(super) fn list_gguf(&self) -> Result<Vec<HubSource>> {
        let address = format!("{}/api/{}", self.config.endpoint, repo(self.source).api_url());
        let answer = self.client.get(&address, None, Redirects::Follow)?;
        self.check_status(answer.status, &self.source.repo)?;
        let what = format!("the hub's listing of {}", self.source.repo);
        let text = answer.whole(LISTING_BYTES_MAX).map_err(|e| e.context(&what))?;
        let info: RepoInfo = serde_json::from_slice(&text).map_err(|e| Error::io(&what, e))?;
        if info.siblings.len() > LISTING_FILES_MAX {
            let message = format!("{} lists more than {LISTING_FILES_MAX} files", self.source.repo);
            return Err(Error::new(ErrorKind::Io, message));
        }
        let mut files: Vec<String> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        files.retain(|f| f.to_ascii_lowercase().ends_with(".gguf"));
        files.sort();
        files.into_iter().map(|file| self.listed(file)).collect()
    }

    /// A file that the hub listed.
    fn listed(&self, file: String) -> Result<HubSource> {
        let place = HubSource { file, ..self.source.clone() };
        place.check().map_err(|e| {
            e.context(format!(
                "{} lists the file \"{}\", whose name tallow refuses; another one can be had as hub:{0}:FILE",
                self.source.repo,
                excerpt(&place.file)
            ))
        })?;
        Ok(place)
    }

    /// Size, hash and exact revision of the file, as far as the hub names them. The hash stands in a header of the
    /// hub's own last answer only, before the redirect to the storage.
    pub(super) fn describe(&self) -> Result<HubFile> {
        let address = self.client.file_address(&self.source.file);
        let answer = self.client.get(&address, Some("bytes=0-0"), Redirects::FollowUntil(SIZE_HEADER))?;
        if !answer.is_redirect() {
            self.check_status(answer.status, &self.what())?;
        }
        let header = |name: &str| answer.header(name).map(str::to_owned);
        let etag = header("x-linked-etag").or_else(|| header("etag")).map(|e| e.replace(['"', '\\'], ""));
        let size = header(SIZE_HEADER).or_else(|| header("content-range")?.rsplit('/').next().map(str::to_owned));
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
        let address = self.client.file_address(&self.source.file);
        let answer = self.client.get(&address, range.as_deref(), Redirects::Follow)?;
        let total: Option<u64> = match answer.status {
            206 => {
                let content_range = answer.header("content-range").unwrap_or_default();
                let (start, total) = parse_content_range(content_range)
                    .ok_or_else(|| Error::io("the hub sent a bad content-range", excerpt(content_range)))?;
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
            200 => {
                partial.restart()?;
                answer.header("content-length").and_then(|v| v.parse().ok())
            }
            status => return Err(self.refusal(status, &self.what())),
        };
        if let (Some(total), Some(size)) = (total, expected.size_bytes)
            && total != size
        {
            return Err(Error::new(ErrorKind::Io, format!("has {total} bytes on the hub, must be {size}")));
        }
        let total = total.or(expected.size_bytes).ok_or_else(|| {
            let message = format!("the hub names no size of {}, and a file without one is not fetched", self.what());
            Error::new(ErrorKind::Io, message)
        })?;
        let mut body = answer.body;
        copy(&mut body, partial, total, progress)
    }

    /// Copies the file from the hub's own cache, if it is there with the right size. False if not.
    fn copy_cached(&self, expected: &Expected, partial: &mut Partial, progress: Progress<'_>) -> Result<bool> {
        let Some(path) = Cache::new(self.config.cache.clone()).repo(repo(self.source)).get(&self.source.file) else {
            return Ok(false);
        };
        let Some(size) = expected.size_bytes.filter(|_| expected.sha256.is_some()) else { return Ok(false) };
        if !std::fs::metadata(&path).is_ok_and(|stat| stat.is_file() && stat.len() == size) {
            return Ok(false);
        }
        let Ok(mut file) = File::open(&path) else { return Ok(false) };
        progress(ProgressEvent::Message(format!("copying from {}", path.display())));
        partial.restart()?;
        let transfer = copy(&mut file, partial, size, progress)?;
        if matches!(transfer, Transfer::Complete) && expected.sha256.as_ref() == Some(&partial.sha256_so_far()) {
            return Ok(true);
        }
        progress(ProgressEvent::Message(format!("{} is damaged, fetching instead", path.display())));
        partial.restart()?;
        Ok(false)
    }

    fn what(&self) -> String {
        format!("{} in {}", self.source.file, self.source.repo)
    }

    fn check_status(&self, status: u16, what: &str) -> Result<()> {
        if (200..300).contains(&status) { Ok(()) } else { Err(self.refusal(status, what)) }
    }

    fn refusal(&self, status: u16, what: &str) -> Error {
        let token = if self.config.token.is_some() { "the token may not allow it" } else { "HF_TOKEN is not set" };
        let message = match status {
            401 | 403 => format!("{status}: no access to {what} ({token})"),
            404 => format!("404: no {what} at revision {}", self.source.revision),
            _ => format!("status {status} for {what}"),
        };
        Error::new(ErrorKind::Io, message)
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
fn copy(from: &mut dyn Read, partial: &mut Partial, total: u64, progress: Progress<'_>) -> Result<Transfer> {
    partial.allow(total)?;
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        progress(ProgressEvent::Bytes { done: partial.len(), total: Some(total) });
        let n = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Ok(Transfer::Broken(e.to_string())),
        };
        partial.write(&chunk[..n])?;
    }
    if partial.len() < total {
        return Ok(Transfer::Broken(format!("the transfer ended at {} of {total} bytes", partial.len())));
    }
    Ok(Transfer::Complete)
}

/// `bytes START-END/TOTAL`; the total may be `*`.
fn parse_content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _end) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}
