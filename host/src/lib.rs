//! The host side of firn: everything behind the `firn` binary.

mod api;
mod causes;
pub mod cli;
mod config;
mod daemon;
mod env;
mod guest;
mod jail;
mod mcp;
mod preflight;
mod sandbox;
mod spec;
mod sys;
mod tar;
mod view;
mod vm;
