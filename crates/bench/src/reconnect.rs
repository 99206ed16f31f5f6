//! A native stream over connections that are cut at random bytes: resume with `Last-Event-ID` until the terminal event,
//! then compare what was collected with one uninterrupted read, event by event and byte by byte.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::draws::Draws;
use super::exchange::{event_stream, parser};
use super::lengths::Lengths;
use super::record::{Failure, Record, RequestEnd, ResumedReport, TokenUsage};
use super::target::{Prepared, Target, read_body, refusal};
use crate::client::SseEvent;

/// Where connections are cut.
#[derive(Debug, Clone)]
pub(crate) struct Cuts {
    /// Bytes of a body until it is cut.
    pub bytes: Lengths,
    /// Cuts that are left; then the stream is read to its end.
    pub num_left: usize,
    /// Of this request.
    pub draws: Draws,
}

impl Cuts {
    /// Bytes until the next cut, if there is to be one.
    fn next(&mut self) -> Option<usize> {
        self.num_left = self.num_left.checked_sub(1)?;
        Some(self.bytes.draw(&mut self.draws))
    }
}

/// What an event's data says; fields of other events are absent.
#[derive(Debug, Deserialize)]
struct Data {
    ts: u64,
    text: Option<String>,
    usage: Option<TokenUsage>,
    error: Option<Value>,
}

/// Starts a stream and follows it over the cuts.
///
/// # Errors
/// Whatever went wrong, except for lost, doubled or changed events, which are counted in the record.
pub(crate) async fn follow_over_cuts(
    target: &Target,
    request: &Prepared,
    mut cuts: Cuts,
    record: &mut Record,
) -> Result<RequestEnd, Failure> {
    let response = target.post(request).send().await.map_err(|e| Failure::transport(&e))?;
    if response.status() != StatusCode::CREATED {
        return Err(refusal(response).await);
    }
    let created: Value = serde_json::from_slice(&read_body(response).await)
        .map_err(|e| Failure::Protocol(format!("the new stream is no JSON: {e}")))?;
    let id = created.get("id").and_then(Value::as_str).map(str::to_owned);
    let id = id.ok_or_else(|| Failure::Protocol("the new stream has no `id`".to_owned()))?;
    record.stream_id = Some(id.clone());
    let mut follower = Follower { path: format!("/streams/{id}"), target, events: Vec::new(), queued_ts: None };
    let mut num_cuts = 0;
    let mut result = Ok(RequestEnd::Complete);
    loop {
        let cut_after = cuts.next();
        match follower.read(cut_after, record).await {
            Ok(Stopped::Cut) => num_cuts += 1,
            Ok(Stopped::Terminal) => break,
            Err(failure @ Failure::Server(_)) => {
                // The stream is complete with an error event; it must be whole all the same.
                result = Err(failure);
                break;
            }
            Err(failure) => return Err(failure),
        }
    }
    record.e2e = record.timeline.begin.elapsed();
    follower.expect_nothing_more().await?;
    let mut reference = Follower { events: Vec::new(), ..follower.clone() };
    match reference.read(None, &mut Record::begin(Instant::now())).await {
        Ok(_) | Err(Failure::Server(_)) => {}
        Err(failure) => return Err(failure),
    }
    record.resumed = Some(ResumedReport { cuts: num_cuts, ..compare(&follower.events, &reference.events) });
    result
}

/// How reading one connection stopped.
enum Stopped {
    Cut,
    Terminal,
}

#[derive(Clone)]
struct Follower<'a> {
    path: String,
    target: &'a Target,
    events: Vec<SseEvent>,
    queued_ts: Option<u64>,
}

impl Follower<'_> {
    fn get(&self) -> reqwest::RequestBuilder {
        let get = self.target.get(&self.path);
        match self.events.last() {
            Some(event) => get.header("last-event-id", &event.id),
            None => get,
        }
    }

    /// Reads one connection up to the cut or the terminal event.
    async fn read(&mut self, cut_after: Option<usize>, record: &mut Record) -> Result<Stopped, Failure> {
        let response = self.get().send().await.map_err(|e| Failure::transport(&e))?;
        let mut response = event_stream(response).await?;
        let mut parser = parser();
        let mut num_left = cut_after.unwrap_or(usize::MAX);
        loop {
            let Some(bytes) = response.chunk().await.map_err(|e| Failure::transport(&e))? else {
                return Err(Failure::Truncated("the stream ended without a terminal event".to_owned()));
            };
            let now = Instant::now();
            let bytes = &bytes[..bytes.len().min(num_left)];
            num_left -= bytes.len();
            parser.push(bytes).map_err(|e| Failure::Protocol(e.to_string()))?;
            while let Some(event) = parser.next_event() {
                if self.event(event, now, record)? {
                    return Ok(Stopped::Terminal);
                }
            }
            if num_left == 0 {
                return Ok(Stopped::Cut);
            }
        }
    }

    /// Takes in one event; `true` after the terminal one.
    fn event(&mut self, event: SseEvent, now: Instant, record: &mut Record) -> Result<bool, Failure> {
        let data: Data = serde_json::from_str(&event.data)
            .map_err(|e| Failure::Protocol(format!("an event that is no native one: {e}")))?;
        let name = event.name.clone();
        self.events.push(event);
        match name.as_str() {
            "queued" => self.queued_ts = self.queued_ts.or(Some(data.ts)),
            "started" => {
                let wait = self.queued_ts.map(|queued| data.ts.saturating_sub(queued));
                record.queue_wait = wait.map(Duration::from_millis);
            }
            "token" if data.text.is_some_and(|text| !text.is_empty()) => record.timeline.piece(now),
            "done" => {
                record.usage = data.usage;
                return Ok(true);
            }
            "error" => {
                let text = data.error.as_ref().and_then(|e| e.get("message")).and_then(Value::as_str);
                return Err(Failure::Server(text.unwrap_or("no message").to_owned()));
            }
            _ => {}
        }
        Ok(false)
    }

    /// After the terminal event a reader is told that there is nothing more.
    async fn expect_nothing_more(&self) -> Result<(), Failure> {
        let response = self.get().send().await.map_err(|e| Failure::transport(&e))?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(()),
            status => Err(Failure::Protocol(format!("after the terminal event came {status}, not 204"))),
        }
    }
}

/// What is lost, doubled or different in `got`. What piled up for a reader that lagged may have come as one event, which
/// stands for all that it covers; `reference` was read after the end, when nothing is merged.
fn compare(got: &[SseEvent], reference: &[SseEvent]) -> ResumedReport {
    let places: HashMap<&str, usize> = reference.iter().enumerate().map(|(i, e)| (e.id.as_str(), i)).collect();
    let mut found = ResumedReport { streams: 1, events: reference.len() as u64, ..ResumedReport::default() };
    let mut is_seen = vec![false; reference.len()];
    let mut next = 0;
    for event in got {
        if event.name == "gap" {
            found.gaps += 1;
            continue;
        }
        let Some(&last) = places.get(event.id.as_str()) else {
            found.different += 1;
            continue;
        };
        let first = first_place(event).map_or(last, |first| first.min(last));
        let num_doubled = is_seen[first..=last].iter().filter(|is_seen| **is_seen).count();
        found.doubled += num_doubled as u64;
        if num_doubled == 0 {
            is_seen[first..=last].fill(true);
            let is_same =
                if first == last { reference[last] == *event } else { is_sum(event, &reference[first..=last]) };
            found.different += u64::from(!is_same || first < next);
            next = last + 1;
        }
    }
    found.lost = is_seen.iter().filter(|is_seen| !**is_seen).count() as u64;
    let seq = |event: &SseEvent| event.id.rsplit_once('-').and_then(|(_, seq)| seq.parse::<usize>().ok());
    found.not_dense = u64::from(reference.iter().enumerate().any(|(i, event)| seq(event) != Some(i)));
    found
}

/// The place of the first of the events that came as this one; `None` if it stands for itself.
fn first_place(event: &SseEvent) -> Option<usize> {
    let data: Value = serde_json::from_str(&event.data).ok()?;
    data.get("first_seq")?.as_u64()?.try_into().ok()
}

/// Whether `merged` says what `parts` say: their texts, tokens and log-probabilities one after another, and all else as
/// in the last.
fn is_sum(merged: &SseEvent, parts: &[SseEvent]) -> bool {
    let fields = |event: &SseEvent| serde_json::from_str::<serde_json::Map<_, _>>(&event.data).ok();
    let Some(mut expected) = parts.last().and_then(fields) else { return false };
    let Some(mut got) = fields(merged) else { return false };
    let parts: Vec<_> = parts.iter().filter_map(fields).collect();
    let text: String = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
    expected.insert("text".to_owned(), text.into());
    for name in ["tokens", "logprobs"] {
        let lists = parts.iter().filter_map(|part| part.get(name)?.as_array());
        let items: Vec<Value> = lists.flatten().cloned().collect();
        // Log-probabilities that nobody asked for are no field at all.
        if expected.contains_key(name) {
            expected.insert(name.to_owned(), items.into());
        }
    }
    got.remove("first_seq");
    got == expected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(seqs: &[usize]) -> Vec<SseEvent> {
        let event =
            |seq: &usize| SseEvent { name: "token".into(), data: format!("{{\"n\":{seq}}}"), id: format!("ab-{seq}") };
        seqs.iter().map(event).collect()
    }

    fn token(seq: usize, text: &str, tokens: &[u32]) -> SseEvent {
        let data = serde_json::json!({"seq": seq, "ts": seq, "text": text, "tokens": tokens});
        SseEvent { name: "token".into(), data: data.to_string(), id: format!("ab-{seq}") }
    }

    #[test]
    fn an_event_that_stands_for_several_covers_them() {
        let reference = [token(0, "a", &[1]), token(1, "b", &[2, 3]), token(2, "c", &[4])];
        let merged = |first_seq: usize, text: &str, tokens: &[u32]| {
            let data = serde_json::json!({"seq": 2, "ts": 2, "first_seq": first_seq, "text": text, "tokens": tokens});
            SseEvent { data: data.to_string(), ..reference[2].clone() }
        };
        let found = |got: &[SseEvent]| ResumedReport { streams: 0, events: 0, ..compare(got, &reference) };
        let none = ResumedReport::default();
        assert_eq!(found(&[reference[0].clone(), merged(1, "bc", &[2, 3, 4])]), none);
        assert_eq!(found(&[merged(1, "bc", &[2, 3, 4])]), ResumedReport { lost: 1, ..none });
        assert_eq!(found(&[reference[0].clone(), merged(1, "b", &[2, 3, 4])]), ResumedReport { different: 1, ..none });
        assert_eq!(found(&[reference[0].clone(), merged(1, "bc", &[2, 3])]), ResumedReport { different: 1, ..none });
        assert_eq!(
            found(&[reference[0].clone(), merged(0, "abc", &[1, 2, 3, 4])]),
            ResumedReport { doubled: 1, lost: 2, ..none }
        );
    }

    #[track_caller]
    fn check(got: &[SseEvent], expect: ResumedReport) {
        let reference = events(&[0, 1, 2, 3]);
        assert_eq!(compare(got, &reference), ResumedReport { streams: 1, events: 4, ..expect });
    }

    #[test]
    fn losses_doubles_and_changes_are_told_apart() {
        let none = ResumedReport::default();
        check(&events(&[0, 1, 2, 3]), none);
        check(&events(&[0, 1, 3]), ResumedReport { lost: 1, ..none });
        check(&events(&[0, 1, 1, 2, 3]), ResumedReport { doubled: 1, ..none });
        check(&events(&[0, 2, 1, 3]), ResumedReport { different: 1, ..none });
        check(&events(&[0, 1, 2, 3, 4]), ResumedReport { different: 1, ..none });
        let mut changed = events(&[0, 1, 2, 3]);
        changed[2].data.push(' ');
        check(&changed, ResumedReport { different: 1, ..none });
        changed = events(&[0, 1, 2, 3]);
        changed.insert(1, SseEvent { name: "gap".into(), ..SseEvent::default() });
        check(&changed, ResumedReport { gaps: 1, ..none });
        assert!(none.is_whole() && !ResumedReport { gaps: 1, ..none }.is_whole());
        assert_eq!(compare(&[], &events(&[0, 2])).not_dense, 1);
    }
}
