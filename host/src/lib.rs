//! The host side of firn: everything behind the `firn` binary.

pub mod cli;
mod config;
mod guest;
mod preflight;
mod sandbox;
mod sys;
mod view;
mod vm;
