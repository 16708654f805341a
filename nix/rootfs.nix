# mkSandboxRootfs: the programs as a root file system, for whoever mounts one, and an artifact for firn at the same
# time: metadata.json and closure, but no wrapper. Everything in it is a link into the store or a small file.
{ pkgs }:
{
  name,
  packages,
  env ? { },
  timeout_seconds ? 30,
  memory_mb ? 512,
  isolation ? null,
}:
let
  accounts = import ./accounts.nix;
  environment = import ./environment.nix { inherit pkgs; } {
    inherit name packages;
    interpreter_type = "bash";
  };
  metadata = import ./metadata.nix {
    inherit
      environment
      env
      timeout_seconds
      memory_mb
      isolation
      ;
  };
in
pkgs.runCommand "sandbox-rootfs-${environment.name}"
  {
    passthru = {
      inherit environment metadata;
    };
  }
  ''
    mkdir -p $out/etc $out/usr $out/tmp $out/dev $out/proc $out/sys $out/run $out/workspace $out/home/sandbox $out/root \
      $out/cache $out/nix/store
    cp ${pkgs.writeText "metadata.json" (builtins.toJSON metadata)} $out/metadata.json
    cp ${environment.closure} $out/closure
    ln -s ${environment.programs}/bin $out/bin
    ln -s ${environment.programs}/bin $out/usr/bin
    for folder in lib lib64 share; do
      if [ -e ${environment.programs}/$folder ]; then
        ln -s ${environment.programs}/$folder $out/$folder
      fi
    done
    if [ -e ${environment.programs}/etc/ssl ]; then
      ln -s ${environment.programs}/etc/ssl $out/etc/ssl
    fi
    cp ${pkgs.writeText "passwd" accounts.passwd} $out/etc/passwd
    cp ${pkgs.writeText "group" accounts.group} $out/etc/group
    printf 'passwd: files\ngroup: files\nhosts: files dns\n' >$out/etc/nsswitch.conf
    printf '127.0.0.1 localhost\n::1 localhost\n' >$out/etc/hosts
    printf '%s\n' ${environment.programs} >$out/.nix-env-reference
  ''
