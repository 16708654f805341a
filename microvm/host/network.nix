# A bridge for sandboxes that are to have a network: its address, forwarding and translation. Which sandbox may reach what
# is not decided here.
{ config, lib, ... }:
let
  cfg = config.services.firn;
  inherit (cfg) network;
in
{
  config = lib.mkIf (cfg.enable && network.enable) {
    systemd.network = {
      enable = true;
      netdevs."20-${network.bridge}".netdevConfig = {
        Kind = "bridge";
        Name = network.bridge;
      };
      networks."20-${network.bridge}" = {
        matchConfig.Name = network.bridge;
        address = [ network.address ];
        networkConfig = {
          ConfigureWithoutCarrier = true;
          LinkLocalAddressing = "no";
        };
        linkConfig.RequiredForOnline = false;
      };
    };
    networking = {
      nat = {
        enable = true;
        internalInterfaces = [ network.bridge ];
        inherit (network) externalInterface;
      };
      # Not to be taken over by whatever else configures interfaces.
      networkmanager.unmanaged = [ "interface-name:${network.bridge}" ];
    };
  };
}
