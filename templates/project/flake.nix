{
  description = "A project with its own environments for firn";

  inputs = {
    nixpkgs.url = "github:nixos/nixpkgs/nixos-unstable";
    # Where this firn is from.
    firn.url = "flake:firn";
  };

  # firn build .#data              builds one
  # firn run --env .#data -- python3 -c 'import numpy; print(numpy.__version__)'
  outputs =
    { nixpkgs, firn, ... }:
    let
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
    in
    {
      packages.${system} = {
        data = firn.lib.mkSandbox {
          inherit pkgs;
          name = "data";
          interpreter_type = "python";
          packages = [ (pkgs.python3.withPackages (packages: [ packages.numpy ])) ];
          timeout_seconds = 120;
          memory_mb = 2048;
        };
        build = firn.lib.mkAgentSandbox {
          inherit pkgs;
          name = "build";
          packages = [
            "gcc"
            "gnumake"
            "git"
          ];
        };
      };
    };
}
