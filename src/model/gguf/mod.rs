//! GGUF files: a checked reader over a memory map.
