# devShells: what firn is built, tested and checked with.
{ pkgs }:
{
  default = pkgs.mkShell {
    packages = with pkgs; [
      bubblewrap
      cargo
      cargo-deny
      cargo-machete
      cargo-nextest
      clippy
      cloud-hypervisor
      deadnix
      nixfmt
      python3
      qemu_kvm
      rustc
      rustfmt
      typos
      virtiofsd
    ];
  };
}
