# What can be said of the daemon.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.services.firn = {
    enable = lib.mkEnableOption "firn, which runs commands in jails and microVMs";

    package = mkOption {
      type = types.package;
      description = "The package with bin/firn and bin/firn-agent.";
    };

    group = mkOption {
      type = types.str;
      default = "firn";
      description = ''
        The group that may talk to the daemon. The daemon is root: who may talk to it can have any folder of the host shown
        to a sandbox and written to. Its members are as good as root.
      '';
    };

    members = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = "Users to put into the group. They are as good as root.";
    };

    settings = mkOption {
      type = (pkgs.formats.toml { }).type;
      default = { };
      example = {
        limits.sandboxes = 64;
        pool.vm = 2;
      };
      description = "The daemon's configuration file, as a value.";
    };

    environments = mkOption {
      type = types.listOf types.package;
      default = [ ];
      example = lib.literalExpression "[ firn.packages.x86_64-linux.\"presets.python\" ]";
      description = "Artifacts that `--env NAME` knows by their name, kept from garbage collection with the system.";
    };

    nestedKvm = mkOption {
      type = types.bool;
      default = false;
      description = "Whether guests may run guests of their own.";
    };

    network = {
      enable = lib.mkEnableOption "a bridge for sandboxes with a network, and translation of their addresses";

      bridge = mkOption {
        type = types.strMatching "[A-Za-z0-9_.-]{1,15}";
        default = "firn0";
        description = "The bridge's name, at most 15 characters (IFNAMSIZ).";
      };

      address = mkOption {
        type = types.strMatching "[0-9.]+/[0-9]+";
        default = "100.127.240.1/20";
        description = ''
          The bridge's address and the length of its network. The usual one is of the range for translation by carriers
          (RFC 6598), which no office or home uses.
        '';
      };

      externalInterface = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "eth0";
        description = "The interface that leads out. null: whichever the route is by.";
      };
    };
  };
}
