# firn-agent as a service: it listens on vsock, says that it is ready by dialling the host, and is configured then.
{ config, lib, ... }:
let
  cfg = config.firn.guest;
in
{
  config = lib.mkIf cfg.enable {
    systemd.services.firn-agent = {
      description = "firn's agent";
      wantedBy = [ "multi-user.target" ];
      after = [
        "local-fs.target"
        "systemd-tmpfiles-setup.service"
      ];
      # Nothing else is waited for: commands may come as soon as there are files.
      unitConfig.DefaultDependencies = false;
      conflicts = [ "shutdown.target" ];
      before = [ "shutdown.target" ];
      serviceConfig = {
        ExecStart = "${cfg.agent}/bin/firn-agent --vsock";
        Restart = "always";
        RestartSec = "100ms";
        # It makes the control group of all commands below its own.
        Delegate = true;
        TasksMax = "infinity";
        LimitNOFILE = 1048576;
        # Commands are told apart from the agent by the kernel too.
        OOMScoreAdjust = -1000;
        OOMPolicy = "continue";
        KillMode = "mixed";
        TimeoutStopSec = "5s";
      };
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
