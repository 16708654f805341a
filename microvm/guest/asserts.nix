# Everything that options of a guest must not be together.
{ config, lib, ... }:
let
  cfg = config.firn.guest;
  inherit (config) microvm;
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = builtins.elem microvm.hypervisor [
          "cloud-hypervisor"
          "qemu"
        ];
        message = "firn: guests run under cloud-hypervisor or qemu, not ${microvm.hypervisor}";
      }
      {
        assertion = microvm.interfaces == [ ];
        message = "firn: the host attaches the network: microvm.interfaces must be empty";
      }
      {
        assertion = microvm.vsock.cid == null;
        message = "firn: the host chooses the CID: microvm.vsock.cid must be null";
      }
      {
        assertion = builtins.all (share: share.readOnly) microvm.shares;
        message = "firn: the caller's folders come with a sandbox: every one of microvm.shares must be read-only";
      }
      {
        assertion =
          cfg.writableStore != "volume"
          || builtins.any (volume: volume.mountPoint == "/nix/.rw-store") microvm.volumes;
        message = "firn: firn.guest.writableStore = \"volume\" needs one of microvm.volumes at /nix/.rw-store";
      }
      {
        assertion = cfg.codex -> builtins.elem "landlock" config.security.lsm;
        message = "firn: firn.guest.codex needs landlock in security.lsm";
      }
    ];
  };
}
