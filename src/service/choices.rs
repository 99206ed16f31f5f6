//! Several answers to one request: each a stream of its own, all of them or none.

use super::Started;
use crate::error::Result;
use crate::protocol::{StreamId, ValidRequest};
use crate::stream::CancelCause;

/// Accepts `num_choices` of `first`, whose end by name is the end of all.
///
/// # Errors
/// The first of `accept`'s; those accepted before are cancelled then.
pub(super) fn all_or_none(
    first: &ValidRequest,
    num_choices: usize,
    mut accept: impl FnMut(ValidRequest) -> Result<Started>,
) -> Result<Vec<Started>> {
    let mut all = AllOrNone(Vec::with_capacity(num_choices));
    for index in 0..num_choices {
        all.0.push(accept(choice(first, index))?);
    }
    let all = std::mem::take(&mut all.0);
    if let [first, others @ ..] = &all[..]
        && !others.is_empty()
    {
        first.log.lead(others.iter().map(|started| &started.log));
    }
    Ok(all)
}

/// Choice `index` of a request.
fn choice(first: &ValidRequest, index: usize) -> ValidRequest {
    let mut request = first.clone();
    if index > 0 {
        request.id = StreamId::random();
        request.leader = Some(first.id);
        request.sampling.seed = Some(first.seed().wrapping_add(index as u64));
    }
    request
}

/// Choices that were accepted while it is not known yet whether all will be. Nobody wants some of them.
struct AllOrNone(Vec<Started>);

impl Drop for AllOrNone {
    fn drop(&mut self) {
        for started in &self.0 {
            started.log.cancel(CancelCause::Requested);
        }
    }
}
