//! Accuracy of the served decoder on a text: perplexity, divergence from the reference and agreement with it, for the
//! fused stages with inputs in f32 and in int8. The reference is candle's primitives in f32 on dequantised weights.
//!
//! `cargo bench --bench accuracy -- MODEL TEXT [--tokens N] [--window N] [--json]`; `benches/accuracy/run` fetches a
//! text, runs this and llama.cpp on it, and puts both in one table.

mod score;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use clap::{CommandFactory, Parser};
use score::Score;
use serde_json::json;
use tallow::hub::{CacheDir, resolve};
use tallow::model::decoder::{ActivationType, Compute, Decoder, DecoderWeights};
use tallow::model::gguf::Gguf;
use tallow::model::load::open;

#[derive(Debug, Parser)]
#[command(name = "accuracy", about = "Perplexity of the served decoder, and its divergence from the reference")]
struct Args {
    /// Name or path of a model
    model: Option<String>,
    /// File with the text
    text: Option<PathBuf>,
    /// How much of the text is read
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    tokens: usize,
    /// Tokens of a window, of which the second half is scored
    #[arg(long, value_name = "N", default_value_t = 512)]
    window: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let (Some(model), Some(text)) = (&args.model, &args.text) else {
        // `cargo bench` runs every benchmark without arguments.
        println!("{}", Args::command().render_usage());
        return Ok(());
    };
    ensure!(args.window >= 4, "--window must be at least 4, got {}", args.window);
    let path = resolve(model, &CacheDir::from_env()?, &|_| {})?.path;
    let text = std::fs::read_to_string(text).with_context(|| text.display().to_string())?;
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = |activations| Compute::Cpu { num_threads, activations };
    let settings = [
        ("reference", Compute::Composed(Device::Cpu)),
        ("f32", cpu(ActivationType::F32)),
        ("int8", cpu(ActivationType::Int8)),
    ];
    let tokenizer = open(&path, &score::options(cpu(ActivationType::F32), args.window))?.tokenizer;
    let windows = score::windows(&tokenizer, &text, args.tokens, args.window)?;
    ensure!(!windows.is_empty(), "the text must fill a window of {} tokens", args.window);
    let gguf = Arc::new(Gguf::open(&path)?);
    let decoder = |compute: &Compute| -> Result<Decoder> {
        Ok(DecoderWeights::load(&gguf, &score::options(compute.clone(), args.window))?.decoder()?)
    };
    let mut decoders = settings.iter().map(|(_, compute)| decoder(compute)).collect::<Result<Vec<_>>>()?;
    let progress = |number: usize| {
        eprint!("\rwindow {number} of {}", windows.len());
        let _ = std::io::stderr().flush();
    };
    let scores = score::score(&mut decoders, &windows, progress)?;
    eprintln!();
    let names = settings.map(|(name, _)| name);
    print(&args, names.into_iter().zip(&scores));
    Ok(())
}

fn print<'a>(args: &Args, scores: impl Iterator<Item = (&'static str, &'a Score)>) {
    if !args.json {
        println!(
            "| inputs | tokens | perplexity | against the reference | mean KL, nats | 99 % of KL below | same top |"
        );
        println!("|---|---|---|---|---|---|---|");
    }
    for (name, score) in scores {
        let ((excess, excess_error), (kl, kl_error)) = (score.excess(), score.divergence());
        let (perplexity, kl_99, same_top) = (score.perplexity(), score.divergence_99(), score.agreement());
        if args.json {
            let row = json!({
                "name": name,
                "num_tokens": score.num_tokens(),
                "perplexity": perplexity,
                "excess": excess,
                "excess_error": excess_error,
                "kl": kl,
                "kl_error": kl_error,
                "kl_99": kl_99,
                "same_top": same_top,
            });
            println!("{row}");
        } else {
            let (excess, error, same_top) = (excess * 100.0, excess_error * 100.0, same_top * 100.0);
            println!(
                "| {name} | {} | {perplexity:.4} | {excess:+.3} ± {error:.3} % | {kl:.2e} ± {kl_error:.0e} | {kl_99:.2e} | {same_top:.2} % |",
                score.num_tokens()
            );
        }
    }
}
