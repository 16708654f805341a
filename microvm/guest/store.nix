# The store: the guest's closure from the host's, read-only on the host's side too, and above it, if there is to be one, a
# place for what the guest builds. Under microvm.nix's own runners it is the whole store.
{ config, lib, ... }:
let
  cfg = config.firn.guest;
  hasOverlay = cfg.writableStore != "none";
in
{
  config = lib.mkIf cfg.enable {
    microvm = {
      shares = [
        {
          proto = "virtiofs";
          tag = cfg.storeTag;
          source = "/nix/store";
          mountPoint = "/nix/.ro-store";
          # microvm.nix would export it writable, and a guest's root mounts what it likes.
          readOnly = true;
          # What is in a store never changes.
          cache = "always";
        }
      ];
      writableStoreOverlay = lib.mkIf hasOverlay "/nix/.rw-store";
    };

    fileSystems = lib.mkIf (cfg.writableStore == "tmpfs") {
      "/nix/.rw-store" = {
        device = "tmpfs";
        fsType = "tmpfs";
        # Half of the guest's memory, in its own file system: a full store leaves / usable.
        options = [
          "size=50%"
          "mode=0755"
        ];
        neededForBoot = true;
      };
    };

    # The store is in use until the last process has gone, so unmounting it at shutdown waits for its own end.
    # microvm.nix has this for a store without an overlay only.
    systemd.mounts = lib.mkIf hasOverlay [
      {
        what = "overlay";
        where = "/nix/store";
        overrideStrategy = "asDropin";
        unitConfig.DefaultDependencies = false;
      }
    ];

    nix = lib.mkIf hasOverlay {
      # Whoever builds inside has the sandbox around it already.
      settings = {
        experimental-features = [
          "nix-command"
          "flakes"
        ];
        auto-optimise-store = false;
      };
      optimise.automatic = false;
      gc.automatic = false;
    };
  };
}
