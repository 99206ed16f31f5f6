//! P4: loss is never silent. Whatever a client says it has last, it gets exactly what follows, or is told: a `gap`, 204
//! at the end, 400, 404 or 410; never a wrong suffix, never a failure of the server.

use std::collections::BTreeMap;

use serde_json::json;

use crate::common::host::{create, native};
use crate::common::{Figure, Host, Options, Random, Reply, SseEvent, SseParser, http, scale};

const SEED: u64 = 104;
const MAX_TOKENS: usize = 40;

/// What a client may send: a real id, broken in some way.
fn cursor(random: &mut Random, epoch: &str, num_events: usize) -> String {
    let seq = random.below(num_events + 3);
    let garbage = |random: &mut Random| {
        let len = 1 + random.below(80);
        (0..len).map(|_| char::from(b'!' + random.below(94) as u8)).collect::<String>()
    };
    match random.below(12) {
        0..4 => format!("{epoch}-{seq}"),
        4 => format!("{epoch}-start"),
        5 => format!("{:x}-{seq}", random.next()),
        6 => format!("{epoch}-{}", random.next()),
        7 => format!("{epoch}-{}{}", random.next(), random.next()),
        8 => format!("{}-{seq}", epoch.to_uppercase()),
        9 => {
            let mut id = format!("{epoch}-{seq}");
            id.replace_range(random.below(id.len()).., &garbage(random));
            id
        }
        10 => format!("{}{seq}", random.of(&["-", "+", "--", "0x-", "-+", "start-", "-start", "%00-", "%-"])),
        _ => garbage(random),
    }
}

/// What the answer must be, by the rules.
fn judge(cursor: &str, epoch: u64, all: &[SseEvent], reply: &Reply) -> Result<&'static str, String> {
    let parsed = cursor.rsplit_once('-').and_then(|(e, seq)| Some((u64::from_str_radix(e, 16).ok()?, seq)));
    let is_exact = |from: usize, reply: &Reply| SseParser::parse(&reply.body) == all[from..];
    let seq = parsed.and_then(|(_, seq)| seq.parse::<u64>().ok());
    match (reply.status, parsed) {
        (400, _) if reply.json()["error"]["param"] == "last_event_id" => Ok("400"),
        (204, Some((e, _))) if e == epoch && seq == Some(all.len() as u64 - 1) => Ok("204"),
        (200, Some((_, "start"))) if is_exact(0, reply) => Ok("the beginning"),
        (200, Some((e, _))) => {
            let events = SseParser::parse(&reply.body);
            let is_known = e == epoch && seq.is_some_and(|seq| seq < all.len() as u64);
            match events.split_first() {
                Some((gap, rest)) if !is_known && gap.name == "gap" && rest == all => Ok("gap"),
                _ if is_known && is_exact(seq.unwrap_or_default() as usize + 1, reply) => Ok("exactly the rest"),
                _ => Err(format!("a wrong suffix of {} events", events.len())),
            }
        }
        (status, _) => Err(format!("status {status}")),
    }
}

#[tokio::test]
async fn p4_whatever_a_client_has_it_gets_the_rest_or_is_told() {
    let num_cases = scale(2_000, 50_000);
    println!("seed {SEED}");
    let host = Host::start(&Options::default()).await;
    let path = create(host.address, &native(MAX_TOKENS, 1, &json!("detach"))).await;
    let all = SseParser::parse(&http(host.address, "GET", &path, &[], "").await.unwrap().body);
    let epoch = host.service.table().epoch().0;
    let mut random = Random::new(SEED);
    let (mut seen, mut wrong) = (BTreeMap::<&str, usize>::new(), Vec::new());
    for n in 0..num_cases {
        let cursor = cursor(&mut random, &format!("{epoch:x}"), all.len());
        // The two ways to say it; what a query cannot hold is written as it must be there.
        let encoded: String = cursor.bytes().map(|b| format!("%{b:02x}")).collect();
        let reply = match n % 2 {
            0 => http(host.address, "GET", &path, &[("last-event-id", &cursor)], "").await,
            _ => http(host.address, "GET", &format!("{path}?last_event_id={encoded}"), &[], "").await,
        };
        match judge(&cursor, epoch, &all, &reply.unwrap()) {
            Ok(what) => *seen.entry(what).or_default() += 1,
            Err(what) => wrong.push(format!("{cursor:?}: {what}")),
        }
    }
    let measured = format!("{} of {num_cases}: {seen:?}", wrong.len());
    let (what, asked) = ("answers that are wrong or silent", "0");
    Figure { promise: "P4", what, asked, measured, is_reached: wrong.is_empty() }.record();
    assert_eq!(wrong, [""; 0]);
    assert_eq!(seen.len(), 5, "every kind of answer: {seen:?}");
}

#[tokio::test]
async fn p4_unknown_is_404_and_expired_is_410_whatever_the_cursor() {
    // Room for one: each further stream pushes the finished one out.
    let host = Host::start(&Options { num_streams_max: 1, ..Options::default() }).await;
    let first = create(host.address, &native(3, 1, &json!("detach"))).await;
    let body = http(host.address, "GET", &first, &[], "").await.unwrap().body;
    let last_id = SseParser::parse(&body).pop().unwrap().id;
    let second = create(host.address, &native(3, 2, &json!("detach"))).await;
    for cursor in ["", "nonsense", &last_id] {
        let headers = [("last-event-id", cursor)];
        for (path, expect) in
            [(&first, 410), (&format!("{first}0"), 404), (&second, if cursor == "nonsense" { 400 } else { 200 })]
        {
            let reply = http(host.address, "GET", path, &headers, "").await.unwrap();
            // Of another stream, but of this life and with that number: nothing tells it from a cursor of its own.
            let is_complete = cursor == last_id && *path == second && reply.status == 204;
            assert!(reply.status == expect || is_complete, "{path} after {cursor:?}: {}", reply.status);
        }
        assert_eq!(http(host.address, "DELETE", &first, &[], "").await.unwrap().status, 410);
    }
}
