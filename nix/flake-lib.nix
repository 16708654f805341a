# The flake's `lib`: functions of a set of packages, for projects that make environments of their own.
{ inputs }:
let
  # Everything over one set of packages: lib.over { pkgs = …; llmAgents = llm-agents.packages.${system}; }
  over =
    {
      pkgs,
      llmAgents ? { },
    }:
    import ./. {
      inherit pkgs llmAgents;
      jail = inputs.jail.lib.init pkgs;
      agent = import ./firn-agent.nix { inherit pkgs; };
    };
  withPackages =
    function:
    { pkgs, ... }@arguments:
    (over { inherit pkgs; }).${function} (removeAttrs arguments [ "pkgs" ]);
in
{
  inherit over;
  mkSandbox = withPackages "mkSandbox";
  mkSandboxRootfs = withPackages "mkSandboxRootfs";
  mkAgentSandbox = withPackages "mkAgentSandbox";
  profiles = import ./profiles.nix;
  guestManifest = import ../microvm/guest/manifest.nix;
}
