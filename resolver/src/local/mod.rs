//! Answers of our own, made here and not asked for. Only `hosts` so far.

pub mod hosts;
