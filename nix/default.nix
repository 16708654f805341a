# Everything that makes environments, over one set of packages.
#
#   pkgs        nixpkgs, or a set that has what is used: bash, coreutils, buildEnv, closureInfo, runCommand, writeText and
#               writeShellScriptBin, besides what a preset or the catalog names
#   jail        what jail.nix's `lib.init pkgs` gives
#   agent       the package with bin/firn-agent, for sessions; null: artifacts have no bin/session-run
#   llmAgents   more agents for the catalog, by name
{
  pkgs,
  jail,
  agent ? null,
  llmAgents ? { },
}:
let
  mkSandbox = import ./sandbox.nix { inherit pkgs jail agent; };
  mkSandboxRootfs = import ./rootfs.nix { inherit pkgs; };
  mkAgentSandbox = import ./agent-sandbox.nix { inherit mkSandboxRootfs catalog; };
  catalog = import ./catalog.nix { inherit pkgs llmAgents; };
  profiles = import ./profiles.nix;
in
{
  inherit
    mkSandbox
    mkSandboxRootfs
    mkAgentSandbox
    catalog
    profiles
    ;
  catalogIndex = import ./catalog-index.nix catalog;
  # Made only when somebody asks for them.
  presets = builtins.mapAttrs (_: mkSandbox) (import ./presets.nix { inherit pkgs; });
  profileRootfs = builtins.mapAttrs (
    name: profile:
    # What only a profile names is a package of the set, in no catalog.
    mkSandboxRootfs {
      inherit name;
      packages = map (
        package:
        catalog.tools.${package} or pkgs.${package}
          or (throw "firn: the profile '${name}' needs '${package}', which these packages do not have")
      ) profile.packages;
    }
  ) profiles;
}
