# packages: firn, its agent, guest images, and the environments that come with it.
{
  inputs,
  pkgs,
  environments,
}:
let
  inherit (pkgs) lib;
  agent = import ../firn-agent.nix { inherit pkgs; };
  firn = import ../firn.nix {
    inherit pkgs agent;
    flake = inputs.self;
  };
  guest =
    modules:
    (import ../guest-system.nix {
      inherit inputs modules;
      inherit (pkgs.stdenv.hostPlatform) system;
    }).config.firn.guest.image;
  named = prefix: lib.mapAttrs' (name: lib.nameValuePair "${prefix}${name}");
in
{
  inherit firn;
  default = firn;
  firn-agent = agent;
  guest = guest [ ];
  guest-codex = guest [ ../../templates/codex-vm/guest.nix ];
}
// named "presets." environments.presets
// named "sandbox-" environments.profileRootfs
