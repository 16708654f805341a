# A fast boot: nothing is started that a sandbox does not need. Budget, from the VMM's start to the agent's call, under KVM
# on a machine of today: 1.5 s. `firn run -v` shows what it took.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.firn.guest;
in
{
  config = lib.mkIf cfg.enable {
    microvm = {
      guest.enable = true;
      optimize.enable = true;
      hypervisor = lib.mkDefault "cloud-hypervisor";
      mem = lib.mkDefault 1024;
      vcpu = lib.mkDefault 2;
      # firn attaches them, one sandbox at a time.
      interfaces = [ ];
      vsock.cid = null;
    };

    boot = {
      initrd.systemd.enable = true;
      initrd.kernelModules = [
        "overlay"
        "virtiofs"
      ];
      tmp.useTmpfs = true;
      enableContainers = false;
      kernelParams = [
        "quiet"
        "random.trust_cpu=on"
      ];
    };

    # Landlock is what sandboxes inside use. Without the bpf module systemd has no program to load for it at each start.
    security.lsm = lib.mkForce [
      "landlock"
      "yama"
    ];

    # Nobody logs in.
    console.enable = false;
    systemd.services = {
      "getty@".enable = false;
      "serial-getty@".enable = false;
      "autovt@".enable = false;
    };
    services = {
      logrotate.enable = false;
      # The host sets the clock.
      timesyncd.enable = false;
      udisks2.enable = false;
    };

    documentation.enable = false;
    fonts.fontconfig.enable = false;
    xdg = {
      icons.enable = false;
      mime.enable = false;
      sounds.enable = false;
    };

    # The agent configures what the host attaches; the host decides what may pass.
    networking = {
      useDHCP = false;
      useNetworkd = true;
      firewall.enable = false;
      hostName = lib.mkDefault "firn";
    };
    systemd.network.wait-online.enable = false;

    environment.systemPackages = lib.optional cfg.codex pkgs.bubblewrap;
    system.stateVersion = lib.mkDefault lib.trivial.release;
  };
}
