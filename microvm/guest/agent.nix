# firn-agent as a service: it listens on vsock, says that it is ready by dialling the host, and is configured then.
{ config, lib, ... }:
let
  cfg = config.firn.guest;
in
{
  config = lib.mkIf cfg.enable {
    # The file itself and not its fields as options, since it is tested in guests that are not NixOS's.
    systemd.units."firn-agent.service" = {
      text = builtins.replaceStrings [ "/usr/local/bin/firn-agent" ] [ "${cfg.agent}/bin/firn-agent" ] (
        builtins.readFile ../../packaging/systemd/guest/firn-agent.service
      );
      wantedBy = [ "multi-user.target" ];
    };

    boot = {
      kernelModules = [
        "vsock"
        "vmw_vsock_virtio_transport"
        "virtiofs"
        "virtio_net"
      ];
    };

    # Folders that every sandbox has.
    systemd.tmpfiles.rules = [
      "d /workspace 1777 root root -"
    ]
    ++ lib.optional cfg.codex "L+ /usr/bin/bwrap - - - - /run/current-system/sw/bin/bwrap";

    users.users.sandbox = {
      uid = 1000;
      isNormalUser = true;
      group = "sandbox";
    };
    users.groups.sandbox.gid = 1000;
  };
}
