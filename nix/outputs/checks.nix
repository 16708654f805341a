# checks: everything that can be built, the form of what is written in Nix, and each NixOS test that tests/nixos holds.
{
  inputs,
  pkgs,
  packages,
}:
let
  inherit (pkgs) lib;
  folder = ../../tests/nixos;
  isTest = name: type: type == "regular" && lib.hasSuffix ".nix" name;
  tests = builtins.attrNames (lib.filterAttrs isTest (builtins.readDir folder));
  test =
    file:
    lib.nameValuePair (lib.removeSuffix ".nix" file) (
      pkgs.testers.runNixOSTest (import (folder + "/${file}") { inherit inputs packages; })
    );
in
removeAttrs packages [ "default" ]
// builtins.listToAttrs (map test tests)
// {
  nix-form =
    pkgs.runCommand "nix-form"
      {
        nativeBuildInputs = [
          pkgs.deadnix
          pkgs.nixfmt
        ];
      }
      ''
        cd ${inputs.self}
        find . -name '*.nix' -exec nixfmt --check {} +
        deadnix --fail .
        touch $out
      '';
}
