{
  description = "A guest with Codex";

  inputs = {
    nixpkgs.url = "github:nixos/nixpkgs/nixos-unstable";
    microvm = {
      url = "github:microvm-nix/microvm.nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    # Where this firn is from.
    firn.url = "flake:firn";
  };

  # nix build .#guest       a folder with manifest.json, a guest image of firn's
  outputs =
    {
      nixpkgs,
      microvm,
      firn,
      ...
    }:
    let
      system = "x86_64-linux";
      guest = nixpkgs.lib.nixosSystem {
        inherit system;
        modules = [
          microvm.nixosModules.microvm
          firn.nixosModules.guest
          { firn.guest.enable = true; }
          ./guest.nix
        ];
      };
    in
    {
      nixosConfigurations.codex = guest;
      packages.${system}.guest = guest.config.firn.guest.image;
    };
}
