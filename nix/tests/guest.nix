# A guest image as microvm/guest/image.nix makes it, without NixOS: of a kernel and a system that are there and do nothing.
{ pkgs }:
let
  file =
    name: what:
    pkgs.runCommand name { } ''
      mkdir $out
      echo ${name} >$out/${what}
    '';
  # What image.nix asks of it: a value for a field of the agent's.
  jq = pkgs.writeShellScriptBin "jq" ''
    [ "$1 $2 $4" = '--arg sum .agent.sha256 = $sum' ] || exit 1
    exec sed 's/"agent":{/&"sha256":"'"$3"'",/' "$5"
  '';
  system = file "system" "init";
  config = {
    firn.guest = {
      enable = true;
      name = "static-guest";
      builtAt = "1970-01-01T00:00:00Z";
      storeTag = "store";
      agent = pkgs.fake "firn-agent" // {
        version = "0.1.0";
        protocol = 1;
      };
      inherit (module.config.firn.guest) manifest;
    };
    microvm = {
      volumes = [ ];
      initrdPath = "${file "initrd" "initrd"}/initrd";
      kernelParams = [
        "quiet"
        "init=${system}/init"
      ];
      mem = 512;
      vcpu = 1;
    };
    boot.kernelPackages.kernel = {
      dev = file "kernel" "vmlinux";
      modDirVersion = "6.12.1";
      version = "6.12.1";
    };
  };
  module = import ../../microvm/guest/image.nix {
    inherit config;
    pkgs = pkgs // {
      inherit jq;
      runCommand =
        name: attributes: script:
        pkgs.runCommand name (
          removeAttrs attributes [ "nativeBuildInputs" ]
          // {
            PATH = builtins.concatStringsSep ":" (
              map (package: "${package}/bin") ([ pkgs.coreutils ] ++ attributes.nativeBuildInputs or [ ])
            );
          }
        ) script;
    };
    lib = {
      mkIf = _: value: value;
      throwIf =
        condition: message: value:
        if condition then throw message else value;
    };
  };
in
{
  inherit (module.config.firn.guest) image;
  inherit system;
}
