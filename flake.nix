{
  description = "Runs untrusted code and coding agents in disposable sandboxes: jails and microVMs";

  inputs = {
    nixpkgs.url = "github:nixos/nixpkgs/nixos-unstable";
    microvm = {
      url = "github:microvm-nix/microvm.nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
    jail.url = "sourcehut:~alexdavid/jail.nix";
  };

  outputs =
    inputs:
    let
      inherit (inputs) self nixpkgs;
      lib = import ./nix/flake-lib.nix { inherit inputs; };
      perSystem =
        output:
        nixpkgs.lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: output system nixpkgs.legacyPackages.${system}
        );
      environments = perSystem (_: pkgs: lib.over { inherit pkgs; });
    in
    {
      inherit lib;
      packages = perSystem (
        system: pkgs:
        import ./nix/outputs/packages.nix {
          inherit inputs pkgs;
          environments = environments.${system};
        }
      );
      apps = perSystem (system: _: import ./nix/outputs/apps.nix { packages = self.packages.${system}; });
      checks = perSystem (
        system: pkgs:
        import ./nix/outputs/checks.nix {
          inherit inputs pkgs;
          packages = self.packages.${system};
        }
      );
      devShells = perSystem (_: pkgs: import ./nix/outputs/dev-shells.nix { inherit pkgs; });
      formatter = perSystem (_: pkgs: pkgs.nixfmt-tree);
      # What `firn --with` and `firn catalog` ask for: packages by name, the same as plain data, and what makes an
      # environment of names.
      catalog = perSystem (system: _: environments.${system}.catalog);
      catalogIndex = perSystem (system: _: environments.${system}.catalogIndex);
      mkAgentSandbox = perSystem (system: _: environments.${system}.mkAgentSandbox);
      # `nix build .#nixosConfigurations.guest.config.microvm.declaredRunner` starts the guest without firn.
      nixosConfigurations.guest = import ./nix/guest-system.nix {
        inherit inputs;
        system = "x86_64-linux";
        modules = [ ];
      };
      nixosModules = {
        guest = import ./microvm/guest { inherit self; };
        host = import ./microvm/host { inherit self; };
      };
      templates = {
        default = self.templates.project;
        project = {
          path = ./templates/project;
          description = "A project with its own environments for firn";
        };
        codex-vm = {
          path = ./templates/codex-vm;
          description = "A guest with Codex";
        };
      };
    };
}
