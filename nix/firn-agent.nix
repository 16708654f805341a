# firn-agent, static: one program for every guest and jail, whatever libc is there.
{ pkgs }:
let
  inherit (pkgs) lib;
  protocol = builtins.match ".*pub const PROTOCOL_VERSION: u32 = ([0-9]+);.*" (
    builtins.readFile ../protocol/src/lib.rs
  );
in
import ./rust-package.nix { inherit (pkgs.pkgsStatic) lib rustPlatform; } {
  name = "firn-agent";
  description = "Runs in a sandbox and executes what the host asks for";
  source = (import ./sources.nix { inherit lib; }).agent;
  profile = "agent";
  arguments.passthru.protocol = lib.toInt (builtins.head protocol);
}
