# services.firn: the daemon of a NixOS host.
{ self }:
{
  imports = [
    ./options.nix
    ./daemon.nix
    ./network.nix
    ./asserts.nix
    (
      { pkgs, lib, ... }:
      {
        services.firn.package = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.firn;
      }
    )
  ];
}
