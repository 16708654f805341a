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

  # firn run --env .#guest -- codex --version     boots it
  # nix build .#guest                             the image: manifest.json, and the store paths it is shown
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
