//! The engine: a bounded queue, workers that pull from it, and the step loop. Plain threads, no async.
