//! From the settings of a model to how its decoder runs.

use candle_core::Device;

use crate::config::{Config, DeviceKind, ModelSection};
use crate::error::{Error, Result};
use crate::model::decoder::{Compute, DecoderOptions};

/// How a worker's decoder runs. Threads are split evenly among the workers; KV memory is each worker's own.
///
/// # Errors
/// If the device was not compiled in or does not answer.
pub(super) fn decoder(config: &Config, model: &ModelSection) -> Result<DecoderOptions> {
    let compute = match model.device {
        DeviceKind::Cpu if model.reference => Compute::Composed(Device::Cpu),
        DeviceKind::Cpu => {
            let num_threads = config.process.threads.unwrap_or_else(num_cores) / config.engine.num_workers;
            Compute::Cpu { num_threads: num_threads.max(1), activations: model.activations }
        }
        DeviceKind::Cuda => Compute::Composed(device("cuda", Device::new_cuda(0))?),
        DeviceKind::Metal => Compute::Composed(device("metal", Device::new_metal(0))?),
    };
    Ok(DecoderOptions {
        compute,
        max_model_len: model.max_model_len,
        kv_bytes_max: model.kv_cache_bytes,
        max_num_seqs: config.engine.max_num_seqs,
    })
}

fn device(name: &str, device: candle_core::Result<Device>) -> Result<Device> {
    device.map_err(|e| Error::invalid("--device", format!("--device {name} cannot be used: {e}")))
}

/// Cores this process may use: affinity and control groups count.
fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_split_between_workers() {
        let threads = |threads: Option<usize>, num_workers: usize| {
            let mut config = Config::default();
            (config.process.threads, config.engine.num_workers) = (threads, num_workers);
            match decoder(&config, &config.model).expect("a CPU").compute {
                Compute::Cpu { num_threads, .. } => num_threads,
                Compute::Composed(device) => panic!("asked for the CPU, got {device:?}"),
            }
        };
        assert_eq!(threads(Some(8), 2), 4);
        assert_eq!(threads(Some(3), 2), 1);
        assert!(threads(None, 1) >= 1);
    }
}
