# What tests build: environments of static programs.
#
#   root    see debian.nix
#   agent   a path: a folder with a static bin/firn-agent; null: sandboxes have no sessions
{
  root,
  agent ? null,
}:
let
  debian = import ./debian.nix { inherit root; };
  pkgs = debian // {
    # Named by the catalog and the profiles, and here programs that say their name.
    cacert = debian.fake "cacert";
    git = debian.fake "git" // {
      meta.description = "Keeps track of changes";
    };
    codex = debian.fake "codex" // {
      meta.description = "Writes code";
    };
    tree = debian.fake "tree";
  };
  firn = import ../. {
    inherit pkgs;
    jail = import ./jail.nix { inherit pkgs; };
    agent =
      if agent == null then
        null
      else
        builtins.path {
          name = "firn-agent";
          path = agent;
        };
  };
in
{
  inherit firn pkgs;
  shell = firn.mkSandbox {
    name = "static-shell";
    interpreter_type = "bash";
    packages = [ pkgs.tree ];
    timeout_seconds = 20;
    memory_mb = 256;
  };
  # Its interpreter says what it was called with.
  python = firn.mkSandbox {
    name = "static-python";
    interpreter_type = "python";
    packages = [ (pkgs.fake "python3") ];
  };
  # With Nix in it.
  builder = firn.mkSandbox {
    name = "builder";
    interpreter_type = "bash";
    packages = [ ];
    timeout_seconds = 600;
    memory_mb = 1024;
    nix = true;
  };
  # An environment with at least so many paths: outputs of one derivation.
  many =
    number:
    let
      names = builtins.genList (index: "out${toString index}") number;
      parts = derivation {
        name = "part";
        system = "x86_64-linux";
        builder = "${pkgs.bash}/bin/bash";
        args = [
          "-euc"
          ''
            for name in $outputs; do
              ${pkgs.coreutils}/bin/mkdir -p "''${!name}/share"
              echo "$name" >"''${!name}/share/$name"
            done
          ''
        ];
        outputs = names;
      };
      together = pkgs.runCommand "together" { } ''
        mkdir -p $out/share
        for part in ${toString (map (name: parts.${name}) names)}; do
          ln -s $part/share/* $out/share/
        done
      '';
    in
    firn.mkSandbox {
      name = "many";
      interpreter_type = "bash";
      packages = [ together ];
    };
  agents = firn.mkAgentSandbox {
    name = "custom";
    packages = [
      "bash"
      "codex"
      "git"
    ];
    env.GREETING = "hello";
  };
  strict = firn.profileRootfs.strict;
  guest = (import ./guest.nix { inherit pkgs; }).image;
  guest-system = (import ./guest.nix { inherit pkgs; }).system;
}
