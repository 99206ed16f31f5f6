//! P15: templates are bounded. A model may bring one that is made to hurt: its chats are refused soon, and whoever
//! needs no template gets meanwhile what it would get from any other model. What such templates try is told in
//! `src/service/template/tests.rs`; here it is what a server makes of them.

use std::net::SocketAddr;
use std::time::Instant;

use serde_json::json;

use crate::common::host::{CHAT, chat, create, native};
use crate::common::{ChildServer, Figure, Options, SseParser, Wire, http, quantile, scale};

const ERROR_MS_MAX: f64 = 100.0;
const STEP_MS: u64 = 5;
/// Of the stream beside the chats.
const NUM_TOKENS: usize = 60;

const HOSTILE: &[&str] = &[
    // Loops without end.
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    // Ranges and repetitions.
    "{{ range(1000000000000) | list }}",
    "{{ ('a' * 10000000000) }}",
    "{{ 10 ** 10 ** 10 ** 10 }}",
    // Strings that double.
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x | replace('a', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join(ns.x) %}{% endfor %}",
    // Padding.
    "{{ ('a\n' * 10000) | indent(1000000000) }}",
    "{{ '{:>999999999}'.format('a') }}",
    "{{ [[1]] | tojson(indent=1000000000) }}",
    // One list many times over.
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    // Too much output.
    "{% for i in range(100000) %}{{ 'a' * 100 }}{% endfor %}",
    // Values as deep as they may be made.
    "{% set ns = namespace(x=0) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}",
];

/// What a stream said, and the longest time between two of its events.
#[derive(Debug)]
struct Said {
    text: String,
    is_whole: bool,
    gap_ms: f64,
}

/// Follows a stream to its end.
async fn follow(mut wire: Wire) -> Said {
    let mut said = Said { text: String::new(), is_whole: false, gap_ms: 0.0 };
    let (mut parser, mut last) = (SseParser::default(), Instant::now());
    while let Some(bytes) = wire.some().await.unwrap() {
        said.gap_ms = said.gap_ms.max(last.elapsed().as_secs_f64() * 1e3);
        last = Instant::now();
        for event in parser.push(&bytes) {
            said.is_whole |= event.name == "done";
            said.text += event.json()["text"].as_str().unwrap_or_default();
        }
    }
    said
}

/// Begins the stream that is the same everywhere.
async fn begin(to: SocketAddr) -> Wire {
    let path = create(to, &native(NUM_TOKENS, 1, &json!("detach"))).await;
    Wire::open(to, "GET", &path, &[], "").await.unwrap().0
}

/// Milliseconds until a chat is refused.
async fn refused_ms(to: SocketAddr) -> f64 {
    let asked_at = Instant::now();
    let reply = http(to, "POST", CHAT, &[], &chat("hi", 5, false).to_string()).await.unwrap();
    let ms = asked_at.elapsed().as_secs_f64() * 1e3;
    assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (500, Some("server_error")));
    ms
}

#[tokio::test(flavor = "multi_thread")]
async fn p15_a_hostile_template_is_refused_and_hurts_nobody_else() {
    let num_chats = scale(2, 20);
    let options = |template: &str| Options {
        template: template.to_owned(),
        step_delay_us: STEP_MS * 1000,
        is_ascii: true,
        ..Options::default()
    };
    let harmless = ChildServer::start(&options("{{ messages[0].content }}"));
    let expected = follow(begin(harmless.address).await).await;
    assert!(expected.is_whole && !expected.text.is_empty(), "{expected:?}");

    let (mut all_ms, mut gaps_ms, mut num_different) = (Vec::new(), Vec::new(), 0);
    for template in HOSTILE {
        let server = ChildServer::start(&options(template));
        let following = tokio::spawn(follow(begin(server.address).await));
        let first = all_ms.len();
        for _ in 0..num_chats {
            all_ms.push(refused_ms(server.address).await);
        }
        println!("{:.0} ms at most: {template}", quantile(&mut all_ms[first..].to_vec(), 1.0));
        let said = following.await.unwrap();
        if (&said.text, said.is_whole) != (&expected.text, true) {
            num_different += 1;
            println!("{template}\n{said:?}\nelsewhere {expected:?}");
        }
        gaps_ms.push(said.gap_ms);
    }
    let num_asked = all_ms.len();
    let worst_ms = quantile(&mut all_ms, 1.0);
    let figure =
        |what, asked, measured, is_reached| Figure { promise: "P15", what, asked, measured, is_reached }.record();
    let measured = format!("{worst_ms:.0} ms at most, {:.0} ms p50, of {num_asked}", quantile(&mut all_ms, 0.5));
    figure("error for a chat with a hostile template", "<= 100 ms", measured, worst_ms <= ERROR_MS_MAX);
    let measured = format!(
        "{num_different} of {}; longest gap {:.0} ms beside such chats, {:.0} ms without",
        HOSTILE.len(),
        quantile(&mut gaps_ms, 1.0),
        expected.gap_ms
    );
    figure("streams beside such chats that differ", "0", measured, num_different == 0);
    assert_eq!(num_different, 0);
}
