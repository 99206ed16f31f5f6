//! Models as Anthropic's clients list them. The route is shared with OpenAI's; the `anthropic-version` header decides.

use serde::Serialize;

use crate::api::App;
use crate::service::Served;

/// A model on the wire.
#[derive(Debug, Serialize)]
pub(crate) struct ModelInfo {
    #[serde(rename = "type")]
    kind: &'static str,
    id: String,
    display_name: String,
    created_at: String,
    /// Both are the context: prompt and output share it.
    max_input_tokens: usize,
    max_tokens: usize,
}

/// One page, which is all of them.
#[derive(Debug, Serialize)]
pub(crate) struct ModelPage {
    data: Vec<ModelInfo>,
    has_more: bool,
    first_id: String,
    last_id: String,
}

/// One model.
pub(crate) fn model(app: &App, served: &Served) -> ModelInfo {
    let name = served.name().to_owned();
    let created_at = rfc3339(app.service.created_ms() / 1000);
    let (max_input_tokens, max_tokens) = (served.context_len(), served.context_len());
    ModelInfo { kind: "model", id: name.clone(), display_name: name, created_at, max_input_tokens, max_tokens }
}

/// All models that messages can be sent to.
pub(crate) fn models(app: &App) -> ModelPage {
    let all = app.service.models().all().iter().filter(|served| !served.only_embeds());
    let data: Vec<ModelInfo> = all.map(|served| model(app, served)).collect();
    let id = |model: Option<&ModelInfo>| model.map(|model| model.id.clone()).unwrap_or_default();
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    ModelPage { data, has_more: false, first_id, last_id }
}

/// Seconds since the Unix epoch as RFC 3339 writes them, in UTC. The date by Howard Hinnant's `civil_from_days`
/// ("chrono-compatible low-level date algorithms"): years begin in March, so that the leap day is the last.
fn rfc3339(unix_seconds: u64) -> String {
    let (days, second) = (unix_seconds / 86_400 + 719_468, unix_seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_are_written_as_rfc_3339_does() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(rfc3339(1_735_689_600 + 3_723), "2025-01-01T01:02:03Z");
    }
}
