# The sources of each program and nothing else, so that an edit of the host's side rebuilds no guest.
#
# Cargo's workspace names crates that are not among a program's sources: `workspace` is the line of Cargo.toml that names
# those that are. Cargo.lock stays whole; what it has too much of is not built.
{ lib }:
let
  root = ../.;
  source =
    crates:
    lib.fileset.toSource {
      inherit root;
      fileset = lib.fileset.unions (
        [
          ../Cargo.toml
          ../Cargo.lock
        ]
        ++ map (crate: lib.fileset.maybeMissing (root + "/${crate}")) crates
      );
    };
  program = crates: {
    src = source crates;
    workspace = ''members = ["${builtins.concatStringsSep ''", "'' crates}"]'';
  };
in
{
  agent = program [
    "protocol"
    "guest-agent"
  ];
  host = program [
    "protocol"
    "host"
  ];
}
