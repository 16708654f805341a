# A NixOS guest: what `firn.guest.image` and microvm.nix's runners are made from.
{
  inputs,
  system,
  modules,
}:
inputs.nixpkgs.lib.nixosSystem {
  inherit system;
  modules = [
    inputs.microvm.nixosModules.microvm
    inputs.self.nixosModules.guest
    { firn.guest.enable = true; }
  ]
  ++ modules;
}
