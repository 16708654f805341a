# What can be said of a guest.
{ lib, ... }:
let
  inherit (lib) mkOption types;
in
{
  options.firn.guest = {
    enable = lib.mkEnableOption "what makes this system a guest of firn";

    name = mkOption {
      type = types.strMatching "[A-Za-z0-9_][A-Za-z0-9_.-]*";
      default = "nixos";
      description = "What the image is called.";
    };

    agent = mkOption {
      type = types.package;
      description = "The package with bin/firn-agent, a static program.";
    };

    storeTag = mkOption {
      type = types.str;
      default = "store";
      description = "The virtio-fs tag by which the guest's closure is mounted. The host exports that much of its store, read-only.";
    };

    writableStore = mkOption {
      type = types.enum [
        "none"
        "tmpfs"
        "volume"
      ];
      default = "tmpfs";
      description = ''
        Where paths go that the guest builds itself: nowhere (the store is read-only and there is no nix-daemon), into
        the guest's memory, or onto a volume that is mounted at /nix/.rw-store, which only microvm.nix's own runners attach.
      '';
    };

    codex = mkOption {
      type = types.bool;
      default = true;
      description = "Whether there is what Codex's own sandbox needs: /usr/bin/bwrap, Landlock, user namespaces.";
    };

    builtAt = mkOption {
      type = types.strMatching "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z";
      default = "1970-01-01T00:00:00Z";
      description = "The time that the guest manifest gives (RFC 3339, UTC).";
    };

    manifest = mkOption {
      type = types.attrs;
      readOnly = true;
      description = "The guest manifest, without the agent's checksum.";
    };

    image = mkOption {
      type = types.package;
      readOnly = true;
      description = "A folder with manifest.json and closure: an environment of firn's, for vms.";
    };
  };
}
