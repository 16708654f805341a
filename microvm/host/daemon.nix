# The daemon as a service, started by whoever asks it for something first.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.firn;
  environments = pkgs.linkFarm "firn-environments" (
    map (artifact: {
      inherit (artifact.metadata) name;
      path = artifact;
    }) cfg.environments
  );
in
{
  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];
    environment.etc."firn/config.toml" = lib.mkIf (cfg.settings != { }) {
      source = (pkgs.formats.toml { }).generate "firn.toml" cfg.settings;
    };
    # Read by the command line, which resolves names.
    environment.variables.NIX_SANDBOX_DIR = lib.mkIf (cfg.environments != [ ]) "${environments}";

    users.groups = lib.mkIf (cfg.group == "firn") { firn = { }; };
    users.users = lib.genAttrs cfg.members (_: {
      extraGroups = [ cfg.group ];
    });

    boot.kernelModules = [
      "kvm-amd"
      "kvm-intel"
      "tun"
    ];
    boot.extraModprobeConfig = lib.mkIf cfg.nestedKvm ''
      options kvm_intel nested=1
      options kvm_amd nested=1
    '';

    systemd.sockets.firn = {
      description = "Socket of the firn sandbox daemon";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "/run/firn/firn.sock" ];
      socketConfig = {
        SocketMode = "0660";
        SocketGroup = cfg.group;
        # Helpers of root's sandboxes pass through as strangers, and cannot look around.
        DirectoryMode = "0711";
        RemoveOnStop = true;
      };
    };

    systemd.services.firn = {
      description = "firn sandbox daemon";
      requires = [ "firn.socket" ];
      after = [ "firn.socket" ];
      # Sandboxes live on, but what they are made of may be of the old package: it is up to the administrator.
      restartIfChanged = false;
      serviceConfig = {
        Type = "notify";
        ExecStart = "${cfg.package}/bin/firn daemon --log-format json";
        TimeoutStopSec = "5min";
        Restart = "on-failure";
        RestartSec = "1s";
        # Only the daemon itself is stopped: sandboxes go on in control groups below this one.
        KillMode = "process";
        Delegate = true;
        OOMPolicy = "continue";
        TasksMax = "infinity";
        LimitNOFILE = 1048576;
        RuntimeDirectory = "firn";
        RuntimeDirectoryMode = "0711";
        RuntimeDirectoryPreserve = true;
        StateDirectory = "firn";
        StateDirectoryMode = "0700";
        CacheDirectory = "firn";
        CacheDirectoryMode = "0755";
        UMask = "0022";
        CapabilityBoundingSet = [
          "~CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_BOOT CAP_SYS_TIME CAP_SYSLOG CAP_WAKE_ALARM"
          "~CAP_BLOCK_SUSPEND CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_MAC_ADMIN CAP_MAC_OVERRIDE"
        ];
        KeyringMode = "private";
      };
    };
  };
}
