# A program of the workspace.
#
#   rustPlatform   nixpkgs', static or not
#   source         see sources.nix
{ lib, rustPlatform }:
{
  name,
  description,
  source,
  profile,
  arguments ? { },
}:
let
  manifest = fromTOML (builtins.readFile ../Cargo.toml);
in
rustPlatform.buildRustPackage (
  {
    pname = name;
    inherit (manifest.workspace.package) version;
    inherit (source) src;
    cargoLock.lockFile = ../Cargo.lock;
    postPatch = ''
      sed -i 's/^members = .*/${source.workspace}/' Cargo.toml
    '';
    buildType = profile;
    cargoBuildFlags = [
      "-p"
      name
    ];
    # Tests need user namespaces, /dev/kvm and a guest's kernel: `make test` runs them.
    doCheck = false;
    meta = {
      inherit description;
      license = [
        lib.licenses.mit
        lib.licenses.asl20
      ];
      platforms = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      mainProgram = name;
    };
  }
  // arguments
)
