# The image: a manifest that names files of the store, and the list of the store paths that the guest is shown.
# microvm.nix describes a guest only in the script that starts it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.firn.guest;
  inherit (config.boot.kernelPackages) kernel;
  # What the guest needs is what its command line leads to: the system, and the registration of its paths.
  closure = pkgs.closureInfo {
    rootPaths = [ (pkgs.writeText "firn-guest-${cfg.name}-cmdline" cfg.manifest.cmdline) ];
  };
in
{
  config = lib.mkIf cfg.enable {
    firn.guest = {
      manifest = import ./manifest.nix {
        inherit (cfg) name builtAt storeTag;
        kernel = "${kernel.dev}/vmlinux";
        initrd = config.microvm.initrdPath;
        kernelRelease = kernel.modDirVersion;
        kernelVersion = kernel.version;
        parameters = config.microvm.kernelParams;
        memory = config.microvm.mem;
        vcpus = config.microvm.vcpu;
        agentVersion = cfg.agent.version;
        inherit (cfg.agent) protocol;
      };
      image =
        lib.throwIf (config.microvm.volumes != [ ])
          "firn: a vm has no disk: microvm.volumes must be empty, or the guest be started by microvm.nix's runner"
          (
            pkgs.runCommand "firn-guest-${cfg.name}"
              {
                manifest = builtins.toJSON cfg.manifest;
                passAsFile = [ "manifest" ];
                nativeBuildInputs = [ pkgs.jq ];
              }
              ''
                mkdir $out
                sum=$(sha256sum <${cfg.agent}/bin/firn-agent)
                jq --arg sum "''${sum%% *}" '.agent.sha256 = $sum' "$manifestPath" >$out/manifest.json
                cp ${closure}/store-paths $out/closure
              ''
          );
    };
  };
}
