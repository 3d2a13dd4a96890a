//! Corefile text to typed configuration; errors with file, line, caret and suggestion.
#![forbid(unsafe_code)]

pub mod config;
