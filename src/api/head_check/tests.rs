//! Requests that keep the rules pass unchanged and leave the check between two requests; each broken rule is found. Both
//! however the bytes are split into reads.

use proptest::prelude::*;

use super::*;

/// What hyper gets of `bytes` read in pieces that end at `cuts`, and the check afterwards.
fn read(bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, HeadCheck) {
    let mut check = HeadCheck::default();
    let mut handed_on = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    for piece in cuts.windows(2) {
        let mut piece = bytes[piece[0]..piece[1]].to_vec();
        let num_bytes = check.follow(&mut piece);
        handed_on.extend_from_slice(&piece[..num_bytes]);
        if check.has_refused_body() {
            break;
        }
    }
    (handed_on, check)
}

fn is_refused(bytes: &[u8], cuts: &[usize]) -> bool {
    let (handed_on, check) = read(bytes, cuts);
    match check.state {
        HeadState::HeadRefused => handed_on.contains(&0) && handed_on.len() == bytes.len(),
        HeadState::BodyRefused => handed_on == bytes[..handed_on.len()] && handed_on.len() < bytes.len(),
        _ => false,
    }
}

fn token() -> impl Strategy<Value = String> {
    "[A-Za-z][A-Za-z0-9-]{0,24}".prop_filter("a name with a rule", |name| {
        !["host", "content-length", "transfer-encoding"].contains(&name.to_ascii_lowercase().as_str())
    })
}

fn chunked(data: &[Vec<u8>], extension: &str, trailers: &[(String, String)]) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in data.iter().filter(|chunk| !chunk.is_empty()) {
        body.extend(format!("{:x}{extension}\r\n", chunk.len()).bytes());
        body.extend(chunk);
        body.extend(b"\r\n");
    }
    body.extend(b"000\r\n");
    trailers.iter().for_each(|(name, value)| body.extend(format!("{name}: {value}\r\n").bytes()));
    body.extend(b"\r\n");
    body
}

prop_compose! {
    fn lines()(lines in prop::collection::vec((token(), "[ -~]{0,30}"), 0..6)) -> Vec<(String, String)> {
        lines
    }
}

prop_compose! {
    /// A request that keeps the rules.
    fn request()(
        empty_lines in 0..2_usize,
        target in "/[!-~]{0,40}",
        lines in lines(),
        trailers in lines(),
        host_at in any::<prop::sample::Index>(),
        length_at in any::<prop::sample::Index>(),
        kind in 0..3,
        data in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4),
        extension in prop::sample::select(vec!["", ";a=b", " ;x=\"y\"", "\t;"]),
        is_upper in any::<bool>(),
    ) -> Vec<u8> {
        let spell = |name: &str| if is_upper { name.to_ascii_uppercase() } else { name.to_owned() };
        let mut lines: Vec<_> = lines.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        lines.insert(host_at.index(lines.len() + 1), format!("{}: localhost", spell("host")));
        let body = match kind {
            0 => Vec::new(),
            1 => data.concat(),
            _ => chunked(&data, extension, &trailers),
        };
        let framing = match kind {
            0 => None,
            1 => Some(format!("{}:  {} ", spell("content-length"), body.len())),
            _ => Some(format!("{}:Chunked", spell("transfer-encoding"))),
        };
        if let Some(framing) = framing {
            lines.insert(length_at.index(lines.len() + 1), framing);
        }
        let head = format!("{}POST {target} HTTP/1.1\r\n{}\r\n\r\n", "\r\n".repeat(empty_lines), lines.join("\r\n"));
        [head.into_bytes(), body].concat()
    }
}

/// A head that breaks one rule; `{}` stands for further lines.
const BROKEN: &[&str] = &[
    "\n{}",
    "GET / HTTP/1.1\nhost: a\r\n{}\r\n",
    "GET / HTTP/1.1\r\nhost: a\n{}\r\n",
    "GET / HTTP/1.1\r\n{}host: a\r\n\n",
    "GET / HTTP/1.1\r\n{}x: a\rb\r\n\r\n",
    "GET / HTTP/1.1\r\n{}x: a\r\n b\r\n\r\n",
    "GET / HTTP/1.1\r\nhost: a\r\n{}HOST: a\r\n\r\n",
    "POST / HTTP/1.1\r\ncontent-length: 2\r\n{}Content-Length: 2\r\n\r\n{}",
    "POST / HTTP/1.1\r\ncontent-length: 2, 2\r\n{}\r\n",
    "POST / HTTP/1.1\r\n{}content-length: +2\r\n\r\n",
    "POST / HTTP/1.1\r\n{}content-length: 99999999999999999999\r\n\r\n",
    "POST / HTTP/1.1\r\n{}content-length: \r\n\r\n",
    "POST / HTTP/1.1\r\ncontent-length: 2\r\n{}transfer-encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n{}content-length: 2\r\n\r\n",
    "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n{}transfer-encoding: chunked\r\n\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: gzip, chunked\r\n\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: identity\r\n\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n2\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n2;a\nb\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n0x2\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n2 \r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n11111111111111111\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n2\r\nabc\r\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n2\r\nab\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n0\r\n\n",
    "POST / HTTP/1.1\r\n{}transfer-encoding: chunked\r\n\r\n0\r\na: b\n\r\n",
];

proptest! {
    #[test]
    fn requests_that_keep_the_rules_pass_unchanged(
        requests in prop::collection::vec(request(), 1..5),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
    ) {
        let bytes = requests.concat();
        let (handed_on, check) = read(&bytes, &cuts);
        prop_assert_eq!(String::from_utf8_lossy(&handed_on), String::from_utf8_lossy(&bytes));
        prop_assert_eq!(check.state, HeadState::Start, "it is not between two requests");
        // In step at each end, too: what is behind one request is the beginning of another one.
        let mut check = HeadCheck::default();
        for mut request in requests {
            check.follow(&mut request);
            prop_assert_eq!(check.state, HeadState::Start);
        }
    }

    #[test]
    fn each_broken_rule_is_found_however_the_bytes_are_split(
        before in prop::collection::vec(request(), 0..3),
        lines in lines(),
        cuts in prop::collection::vec(any::<usize>(), 0..12),
        broken in prop::sample::select(BROKEN),
    ) {
        let lines: String = lines.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let bytes = [before.concat(), broken.replace("{}", &lines).into_bytes()].concat();
        prop_assert!(is_refused(&bytes, &cuts), "{:?}", String::from_utf8_lossy(&bytes));
        let all: Vec<usize> = (0..bytes.len()).collect();
        prop_assert!(is_refused(&bytes, &all), "byte by byte: {:?}", String::from_utf8_lossy(&bytes));
        let (handed_on, _) = read(&bytes, &cuts);
        let num_before = before.concat().len();
        prop_assert_eq!(&handed_on[..num_before], &before.concat()[..], "requests before it pass");
    }
}

#[test]
fn a_body_is_skipped_by_its_length_whatever_it_holds() {
    let body = "\n\r\0 content-length: 9\r\ncontent-length: 9\r\n\r\n";
    let bytes = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (handed_on, check) = read(bytes.as_bytes(), &[]);
    assert_eq!((handed_on, check.state), (bytes.into_bytes(), HeadState::Start));
}
