//! The binary: picks the allocator, hands over to the command line, turns its result into an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tallow::telemetry::report_panics_once();
    tallow::cli::main()
}
