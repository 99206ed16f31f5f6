//! The HTTP wires.
