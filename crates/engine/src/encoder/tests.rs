//! The encoder's pool with a model that a test holds back.

use std::sync::mpsc::{self, Receiver, Sender};

use super::*;
use tallow_stream::StreamReader;
use tallow_stream::error::ErrorKind;
use tallow_stream::protocol::{Event, QueueTerms, StreamId};

fn pool(queue_max: usize) -> EncoderPool {
    EncoderPool::open(EncoderLimits { queue_max, priority_step_tokens: 4096 }, Arc::default())
}

/// A model that tells which text it begins and waits for a word before it goes on: `[first token, 1]` for each token.
fn gated() -> (StatesOf, Receiver<TokenId>, Sender<()>) {
    let ((began, begun), (go, gate)) = (mpsc::channel(), mpsc::channel());
    let states_of = move |tokens: &[TokenId]| {
        let _ = began.send(tokens[0]);
        // Without a sender any more, nothing is held back.
        let _ = gate.recv();
        assert!(tokens[0] != 13, "the model has a bug, as this test wants");
        Ok(tokens.iter().flat_map(|_| [tokens[0] as f32, 1.0]).collect())
    };
    (Box::new(states_of), begun, go)
}

/// A text that begins with its own number.
fn input(number: u32, tenant: u64) -> ValidInput {
    let tokens = vec![number, 7, 7];
    ValidInput { id: StreamId(number.into()), tenant: Tenant(tenant), tokens, queue: QueueTerms::default() }
}

fn end(reader: &mut StreamReader) -> Event {
    loop {
        match reader.try_next() {
            Some((_, event)) if event.is_terminal() => return event,
            Some(_) => {}
            None => std::thread::yield_now(),
        }
    }
}

fn vector(mut embedding: Embedding) -> Result<Vec<f32>> {
    match end(&mut embedding.reader) {
        Event::Error(info) => Err(Error::new(info.kind, info.message)),
        _ => embedding.take(),
    }
}

#[test]
fn texts_wait_for_the_model_and_come_back_with_it() {
    let pool = pool(4);
    let (states_of, _begun, go) = gated();
    drop(go);
    let early = pool.embed(input(3, 0)).expect("room");
    assert!(!pool.unload(), "a text waits");
    assert_eq!((pool.num_waiting(), pool.is_ready()), (1, false));
    pool.load(states_of).expect("a thread");
    let length = 90f64.sqrt();
    assert_eq!(vector(early), Ok([9.0, 3.0].map(|sum: f64| (sum / length) as f32).to_vec()));
    assert_eq!((pool.metrics.embeddings.get(), pool.metrics.embedding_tokens.get()), (1, 3));
    while !pool.unload() {
        std::thread::yield_now();
    }
    assert!(!pool.is_ready());
    let late = pool.embed(input(4, 0)).expect("it waits again");
    let (states_of, _begun, go) = gated();
    drop(go);
    pool.load(states_of).expect("a thread");
    assert!(vector(late).is_ok());
}

#[test]
fn a_full_queue_is_refused_and_a_text_that_left_makes_room() {
    let pool = pool(1);
    let (states_of, begun, go) = gated();
    pool.load(states_of).expect("a thread");
    let running = pool.embed(input(1, 0)).expect("room");
    assert_eq!(begun.recv(), Ok(1));
    let waiting = pool.embed(input(2, 0)).expect("room for one that waits");
    let refused = pool.embed(input(3, 0)).expect_err("full");
    assert_eq!(refused.kind(), ErrorKind::Overloaded);
    assert!(refused.retry_after_ms().is_some_and(|ms| ms > 0));
    assert_eq!(pool.metrics.requests_rejected.get(), 1);
    drop(waiting);
    assert_eq!(pool.num_waiting(), 0, "it left at once");
    let next = pool.embed(input(4, 0)).expect("room again");
    drop(go);
    assert!(vector(running).is_ok() && vector(next).is_ok());
    assert_eq!(begun.try_iter().collect::<Vec<_>>(), [4], "nothing was computed for the one that left");
}

/// The line was first come, first served: one key's texts held up everybody else's.
#[test]
fn owners_take_turns() {
    let pool = pool(64);
    let (states_of, begun, go) = gated();
    pool.load(states_of).expect("a thread");
    let mut all = vec![pool.embed(input(1, 1)).expect("room")];
    assert_eq!(begun.recv(), Ok(1));
    all.extend((2..10).map(|number| pool.embed(input(number, 1)).expect("room")));
    all.push(pool.embed(input(100, 2)).expect("room"));
    drop(go);
    all.into_iter().for_each(|embedding| assert!(vector(embedding).is_ok()));
    let order: Vec<_> = begun.try_iter().collect();
    let place = order.iter().position(|number| *number == 100).expect("it was computed");
    assert!(place <= 1, "another owner's text is next, or the one after: {order:?}");
}

#[test]
fn a_panic_ends_its_own_text_only_and_the_end_is_told() {
    let pool = pool(4);
    let (states_of, begun, go) = gated();
    pool.load(states_of).expect("a thread");
    let [first, broken] = [1, 13].map(|number| pool.embed(input(number, 0)).expect("room"));
    go.send(()).expect("it waits");
    go.send(()).expect("it waits");
    assert!(vector(first).is_ok());
    assert_eq!(vector(broken).map_err(|e| e.kind()), Err(ErrorKind::Internal));
    let [running, waiting] = [2, 3].map(|number| pool.embed(input(number, 0)).expect("room"));
    assert_eq!(begun.iter().find(|number| *number == 2), Some(2));
    pool.drain();
    assert_eq!(pool.embed(input(4, 0)).map(drop).map_err(|e| e.kind()), Err(ErrorKind::Unavailable));
    // The thread is in the middle of a text, which is answered; what waits is not.
    std::thread::scope(|scope| {
        scope.spawn(|| pool.shutdown("the end"));
        assert_eq!(vector(waiting).map_err(|e| e.message().to_owned()), Err("the end".to_owned()));
        drop(go);
        assert!(vector(running).is_ok());
    });
    assert!(pool.is_idle());
}

#[test]
fn a_text_that_waits_for_too_long_is_told_whether_the_model_is_there_or_not() {
    let pool = pool(4);
    let late = ValidInput { queue: QueueTerms { timeout_ms: Some(0), ..QueueTerms::default() }, ..input(1, 0) };
    let late = pool.embed(late).expect("room");
    pool.sweep();
    assert_eq!(vector(late).map_err(|e| e.kind()), Err(ErrorKind::QueueTimeout));
    let failed = pool.embed(input(2, 0)).expect("room");
    pool.refuse_waiting(&Error::bad_model("x.safetensors: not there"));
    let e = vector(failed).expect_err("the model cannot be loaded");
    assert!(e.message().contains("x.safetensors: not there"), "{e}");
}
