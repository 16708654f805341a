# A NixOS guest for firn, on microvm.nix: systemd is PID 1, firn-agent a service, and what makes a booted guest into a
# sandbox (host name, clock, entropy, folders, network) comes from the host by `Configure`. No address, MAC, tap, CID or
# folder is in here, so one image serves every sandbox.
{ self }:
{
  imports = [
    ./options.nix
    ./agent.nix
    ./store.nix
    ./boot.nix
    ./image.nix
    ./asserts.nix
    (
      { pkgs, lib, ... }:
      {
        firn.guest = {
          agent = lib.mkDefault self.packages.${pkgs.stdenv.hostPlatform.system}.firn-agent;
          # The commit's time, so that one commit makes one image.
          builtAt = lib.mkIf (self ? lastModifiedDate) (
            let
              part = builtins.substring;
              date = self.lastModifiedDate;
            in
            lib.mkDefault "${part 0 4 date}-${part 4 2 date}-${part 6 2 date}T${part 8 2 date}:${part 10 2 date}:${part 12 2 date}Z"
          );
        };
      }
    )
  ];
}
