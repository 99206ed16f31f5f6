//! Refuses request heads that two programs may read differently, before hyper sees them. A proxy in front of tallow and
//! tallow itself must agree where each request ends; hyper forgives some heads about which they may not, and does not
//! show them:
//!
//! - a line that ends in LF without CR,
//! - several `content-length` lines, also if they agree, and `content-length` beside `transfer-encoding`,
//! - a `transfer-encoding` other than `chunked`, and several of them,
//! - several `host` lines,
//! - a chunk's size with white space behind it, unless an extension follows.
//!
//! The check follows the bytes of a connection from request to request:
//!
//! ```text
//! Start -> RequestLine -> LineLf -> LineStart -> Name -> Value -> LineLf ... LineStart -> HeadLf
//!   ^                                                                                     |
//!   +---------------------------- Body (skipped by length), or chunks <------------------+
//! ```
//! From the first byte of a head that breaks a rule on, hyper gets NUL bytes, which no head may have: it answers 400, closes
//! the connection, and nothing of the request reaches a route. From the first byte of a chunked body that breaks a rule
//! on, reading fails: the handler that waits for the body answers 400, and the connection is closed. All other rules are
//! hyper's own. Where hyper itself refuses, the connection ends, so it does not matter that the check may be out of step
//! from there on. The states of chunked bodies are those of hyper's decoder (RFC 9112, section 7.1), which bounds sizes
//! and extensions.

#![expect(clippy::match_same_arms, reason = "a table of transitions, one line for each")]

/// The longest name that the check must know.
const NAME_BYTES_MAX: usize = "transfer-encoding".len();
/// The longest value that the check must know: a length in decimal digits, with spaces around it.
const VALUE_BYTES_MAX: usize = 64;

/// Where a connection stands.
#[derive(Debug, Default)]
pub(super) struct HeadCheck {
    state: HeadState,
    head: Head,
    name: Prefix<NAME_BYTES_MAX>,
    value: Prefix<VALUE_BYTES_MAX>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum HeadState {
    /// Before a request; empty lines may come.
    #[default]
    Start,
    StartLf,
    RequestLine,
    /// After the CR of the request line or a header line.
    LineLf,
    LineStart,
    Name,
    Value,
    /// After the CR of the empty line.
    HeadLf,
    /// So many bytes are left.
    Body(u64),
    Chunk(ChunkState),
    /// A head broke a rule: hyper gets no byte of what comes.
    HeadRefused,
    /// The same for a chunked body.
    BodyRefused,
}

/// Within a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    Size(u64),
    /// White space, which may come before an extension.
    SizeSpace(u64),
    Extension(u64),
    SizeLf(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the start of a line behind the last chunk.
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// What the lines of a head have said.
#[derive(Debug, Default)]
struct Head {
    has_host: bool,
    num_bytes: Option<u64>,
    is_chunked: bool,
}

/// The beginning of a name or a value.
#[derive(Debug)]
struct Prefix<const MAX: usize> {
    bytes: [u8; MAX],
    /// Also of those that did not fit.
    len: usize,
}

impl<const MAX: usize> Default for Prefix<MAX> {
    fn default() -> Self {
        Self { bytes: [0; MAX], len: 0 }
    }
}

impl<const MAX: usize> Prefix<MAX> {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len) {
            *slot = byte;
        }
        self.len += 1;
    }

    /// All of it, if it fits.
    fn get(&self) -> Option<&[u8]> {
        self.bytes.get(..self.len)
    }
}

/// A rule that was broken.
type Broken = &'static str;

impl HeadCheck {
    /// Follows `bytes`, which were read from the connection. Returns how many of them are to be handed on; where a head
    /// breaks a rule, it overwrites them.
    pub(super) fn follow(&mut self, bytes: &mut [u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let num_skipped = self.skip(bytes.len() - at);
            at += num_skipped;
            if num_skipped > 0 {
                continue;
            }
            let is_body = matches!(self.state, HeadState::Chunk(_));
            if let Err(rule) = self.step(bytes[at]) {
                tracing::debug!(rule, "a request's framing was refused");
                self.state = if is_body { HeadState::BodyRefused } else { HeadState::HeadRefused };
            }
            match self.state {
                HeadState::BodyRefused => return at,
                HeadState::HeadRefused => {
                    bytes[at..].fill(0);
                    return bytes.len();
                }
                _ => at += 1,
            }
        }
        at
    }

    /// Whether reading must fail.
    pub(super) fn has_refused_body(&self) -> bool {
        self.state == HeadState::BodyRefused
    }

    /// How many of `num_bytes` are a body's; they need not be looked at.
    fn skip(&mut self, num_bytes: usize) -> usize {
        let (HeadState::Body(left) | HeadState::Chunk(ChunkState::Data(left))) = &mut self.state else { return 0 };
        let num_skipped = usize::try_from(*left).map_or(num_bytes, |left| left.min(num_bytes));
        *left -= num_skipped as u64;
        match self.state {
            HeadState::Body(0) => self.state = HeadState::Start,
            HeadState::Chunk(ChunkState::Data(0)) => self.state = HeadState::Chunk(ChunkState::DataCr),
            _ => {}
        }
        num_skipped
    }

    fn step(&mut self, byte: u8) -> Result<(), Broken> {
        self.state = match (self.state, byte) {
            (HeadState::Chunk(chunk), _) => chunk.step(byte)?.map_or(HeadState::Start, HeadState::Chunk),
            (HeadState::StartLf, b'\n') => HeadState::Start,
            (HeadState::LineLf, b'\n') => HeadState::LineStart,
            (HeadState::HeadLf, b'\n') => self.body(),
            (HeadState::StartLf | HeadState::LineLf | HeadState::HeadLf, _) => return Err("LF must come after CR"),
            (HeadState::Body(_) | HeadState::HeadRefused | HeadState::BodyRefused, _) => self.state,
            (_, b'\n') => return Err("CR must come before LF"),
            (HeadState::Start, b'\r') => HeadState::StartLf,
            (HeadState::Start, _) => {
                self.head = Head::default();
                HeadState::RequestLine
            }
            (HeadState::RequestLine, b'\r') => HeadState::LineLf,
            (HeadState::RequestLine, _) => HeadState::RequestLine,
            (HeadState::LineStart, b'\r') => HeadState::HeadLf,
            (HeadState::LineStart, b' ' | b'\t') => return Err("a header line must not go on in the next line"),
            (HeadState::LineStart, _) => {
                self.name.len = 0;
                self.name.push(byte.to_ascii_lowercase());
                HeadState::Name
            }
            (HeadState::Name, b':') => {
                self.begin_value()?;
                HeadState::Value
            }
            // hyper refuses a line without a colon.
            (HeadState::Name, b'\r') => HeadState::LineLf,
            (HeadState::Name, _) => {
                self.name.push(byte.to_ascii_lowercase());
                HeadState::Name
            }
            (HeadState::Value, b'\r') => {
                self.end_value()?;
                HeadState::LineLf
            }
            (HeadState::Value, _) => {
                self.value.push(byte.to_ascii_lowercase());
                HeadState::Value
            }
        };
        Ok(())
    }

    /// The name is there. Rules on numbers of lines are decided here, so that the head has not ended yet.
    fn begin_value(&mut self) -> Result<(), Broken> {
        self.value.len = 0;
        match self.name.get() {
            Some(b"host") if self.head.has_host => return Err("`host` must come once"),
            Some(b"host") => self.head.has_host = true,
            Some(b"content-length") if self.head.num_bytes.is_some() => return Err("`content-length` must come once"),
            Some(b"content-length") if self.head.is_chunked => {
                return Err("`content-length` must not come with `transfer-encoding`");
            }
            Some(b"transfer-encoding") if self.head.is_chunked => return Err("`transfer-encoding` must come once"),
            Some(b"transfer-encoding") if self.head.num_bytes.is_some() => {
                return Err("`transfer-encoding` must not come with `content-length`");
            }
            _ => {}
        }
        Ok(())
    }

    fn end_value(&mut self) -> Result<(), Broken> {
        let value = self.value.get().map(<[u8]>::trim_ascii);
        match self.name.get() {
            Some(b"content-length") => {
                let is_number = |value: &&[u8]| !value.is_empty() && value.iter().all(u8::is_ascii_digit);
                let digits = value.filter(is_number).and_then(|value| std::str::from_utf8(value).ok());
                let num_bytes = digits.and_then(|digits| digits.parse().ok());
                self.head.num_bytes = Some(num_bytes.ok_or("`content-length` must be a number")?);
            }
            Some(b"transfer-encoding") if value == Some(b"chunked") => self.head.is_chunked = true,
            Some(b"transfer-encoding") => return Err("`transfer-encoding` must be chunked"),
            _ => {}
        }
        Ok(())
    }

    /// What comes behind the head.
    fn body(&self) -> HeadState {
        match self.head {
            Head { is_chunked: true, .. } => HeadState::Chunk(ChunkState::Size(0)),
            Head { num_bytes: Some(num_bytes), .. } if num_bytes > 0 => HeadState::Body(num_bytes),
            Head { .. } => HeadState::Start,
        }
    }
}

impl ChunkState {
    /// The next state; `None` behind the body.
    fn step(self, byte: u8) -> Result<Option<Self>, Broken> {
        let size = |size: u64, digit: u8| {
            size.checked_mul(16).and_then(|size| size.checked_add(u64::from(digit))).ok_or("a chunk is too large")
        };
        let next = match (self, byte) {
            (Self::Size(n), b'0'..=b'9') => Self::Size(size(n, byte - b'0')?),
            (Self::Size(n), b'a'..=b'f') => Self::Size(size(n, byte - b'a' + 10)?),
            (Self::Size(n), b'A'..=b'F') => Self::Size(size(n, byte - b'A' + 10)?),
            (Self::Size(n) | Self::SizeSpace(n), b' ' | b'\t') => Self::SizeSpace(n),
            (Self::Size(n) | Self::SizeSpace(n), b';') => Self::Extension(n),
            (Self::SizeSpace(_), b'\r') => return Err("a chunk's size must not have white space behind it"),
            (Self::Size(n) | Self::Extension(n), b'\r') => Self::SizeLf(n),
            (Self::Extension(_), b'\n') => return Err("a chunk's extension must not have LF"),
            (Self::Extension(n), _) => Self::Extension(n),
            (Self::SizeLf(0) | Self::TrailerLf, b'\n') => Self::TrailerStart,
            (Self::SizeLf(n), b'\n') => Self::Data(n),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::Size(0),
            (Self::TrailerStart, b'\r') => Self::EndLf,
            (Self::EndLf, b'\n') => return Ok(None),
            (Self::Trailer, b'\r') => Self::TrailerLf,
            (Self::TrailerStart | Self::Trailer, b'\n') => return Err("CR must come before LF"),
            (Self::TrailerStart | Self::Trailer, _) => Self::Trailer,
            _ => return Err("a chunk must be its size in hexadecimal digits, CR LF, its data and CR LF"),
        };
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests;
