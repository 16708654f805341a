# Everything that options of the host must not be together.
{ config, lib, ... }:
let
  cfg = config.services.firn;
  names = map (artifact: artifact.metadata.name) cfg.environments;
  prefix = lib.toInt (lib.last (lib.splitString "/" cfg.network.address));
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = builtins.all (artifact: artifact ? metadata) cfg.environments;
        message = "services.firn.environments takes what mkSandbox, mkSandboxRootfs and mkAgentSandbox make";
      }
      {
        assertion = lib.allUnique names;
        message = "services.firn.environments has two of one name: ${toString names}";
      }
      {
        assertion = prefix >= 8 && prefix <= 29;
        message = "services.firn.network.address: a network of sandboxes has a prefix of 8 to 29 bits, not ${toString prefix}";
      }
      {
        assertion = cfg.group == "firn" || config.users.groups ? ${cfg.group};
        message = "services.firn.group: there is no group ${cfg.group}";
      }
    ];
  };
}
