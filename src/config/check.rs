//! Rules between settings, and the defaults that depend on other values or on the machine.

use super::house::{Config, Origin, setting};
use super::process::DeviceKind;
use crate::error::{Error, Result};
use crate::settings::Value;

/// Fills in what depends on other values, then checks the settings against each other.
pub(super) fn together(mut config: Config) -> Result<Config> {
    fill_in(&mut config)?;
    let engine = &config.engine;
    if engine.max_num_batched_tokens < engine.max_num_seqs {
        return Err(pair("engine.max_num_batched_tokens", engine.max_num_batched_tokens, "engine.max_num_seqs", {
            engine.max_num_seqs
        }));
    }
    if engine.prefill_tokens_per_step_max > engine.max_num_batched_tokens {
        let message = format!(
            "--prefill-tokens-per-step-max must be at most --max-num-batched-tokens ({}), got {}",
            engine.max_num_batched_tokens, engine.prefill_tokens_per_step_max
        );
        return Err(Error::invalid("engine.prefill_tokens_per_step_max", message));
    }
    if let Some(threads) = config.process.threads
        && threads < engine.num_workers
    {
        return Err(pair("engine.threads", threads, "engine.num_workers", engine.num_workers));
    }
    std::iter::once(&config.model).chain(&config.more_models).try_for_each(|model| device(model.device))?;
    config.api.cors_origins.iter().try_for_each(|origin| cors_origin(origin))?;
    Ok(config)
}

fn pair(small: &'static str, got: usize, large: &'static str, least: usize) -> Error {
    let (small_flag, large_flag) = (setting(small).flag, setting(large).flag);
    Error::invalid(small, format!("--{small_flag} must be at least --{large_flag} ({least}), got {got}"))
}

/// Values that nobody typed and that follow from others.
fn fill_in(config: &mut Config) -> Result<()> {
    if config.process.cache_dir.as_os_str().is_empty() {
        let base = dirs::cache_dir().ok_or_else(|| {
            Error::invalid("registry.cache_dir", "--cache-dir must be given: this user has no cache directory")
        })?;
        config.process.cache_dir = base.join("tallow");
        let shown = config.process.cache_dir.to_string_lossy().into_owned();
        replace(config, "registry.cache_dir", Value::Text(shown));
    }
    // More than a queue takes of one key would be refused though nobody else is there.
    let queue_max = config.process.embedding_queue_max.min(config.engine.queue_requests_max);
    config.service.embedding_inputs_at_once = config.service.embedding_inputs_at_once.min(queue_part(queue_max));
    // A smaller step than the default prefill share is a wish about the step, not a mistake about the share.
    let engine = &mut config.engine;
    let step = engine.max_num_batched_tokens;
    if engine.prefill_tokens_per_step_max > step
        && config.origin("engine.prefill_tokens_per_step_max") == Origin::Default
    {
        config.engine.prefill_tokens_per_step_max = step;
        replace(config, "engine.prefill_tokens_per_step_max", Value::Number(step as u64));
    }
    Ok(())
}

/// Most requests of a lone key that a queue of so many takes.
fn queue_part(requests_max: usize) -> usize {
    (requests_max - requests_max / 5).max(1)
}

fn replace(config: &mut Config, key: &str, value: Value) {
    let entry = config.resolved.iter_mut().find(|(s, _, _)| s.key == key);
    entry.expect("every setting is resolved").1 = value;
}

/// A device needs its support compiled in; this never falls back to another in silence.
fn device(device: DeviceKind) -> Result<()> {
    let (name, compiled_in) = match device {
        DeviceKind::Cpu => return Ok(()),
        DeviceKind::Cuda => ("cuda", cfg!(feature = "cuda")),
        DeviceKind::Metal => ("metal", cfg!(feature = "metal")),
    };
    if compiled_in {
        return Ok(());
    }
    let message = format!("--device {name}: this binary has no {name} support; build it with `--features {name}`");
    Err(Error::invalid("model.device", message))
}

/// An origin is scheme, host and port: `https://chat.example`, never a path.
fn cors_origin(origin: &str) -> Result<()> {
    let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    let plain = |host: &str| !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && c != '/');
    if origin == "*" || host.is_some_and(plain) {
        return Ok(());
    }
    let message = format!("--cors-origins must be `*` or origins like https://chat.example, got `{origin}`");
    Err(Error::invalid("server.cors_origins", message))
}
