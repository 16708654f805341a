# firn with everything a sandbox needs on its PATH, after what the caller has: the distribution's bubblewrap may be the
# only one that AppArmor lets make user namespaces (Ubuntu 24.04).
#
#   agent   firn-agent, see firn-agent.nix
#   flake   where `--with` and `--profile` take packages from, when the caller names no other
{
  pkgs,
  agent,
  flake,
}:
let
  inherit (pkgs) lib;
  firn = import ./rust-package.nix { inherit (pkgs) lib rustPlatform; } {
    name = "firn";
    description = "Runs untrusted code and coding agents in disposable sandboxes";
    source = (import ./sources.nix { inherit lib; }).host;
    profile = "release";
    arguments = {
      nativeBuildInputs = [ pkgs.installShellFiles ];
      # The agent is looked for beside the program that runs, which is this one and not its wrapper.
      postInstall = ''
        installShellCompletion --cmd firn \
          --bash <($out/bin/firn completions bash) \
          --zsh <($out/bin/firn completions zsh) \
          --fish <($out/bin/firn completions fish)
        ln -s ${agent}/bin/firn-agent $out/bin/firn-agent
      '';
    };
  };
  isThere = name: lib.optional (pkgs ? ${name}) pkgs.${name};
  programs = [
    pkgs.bubblewrap
    pkgs.virtiofsd
    pkgs.qemu_kvm
    pkgs.nix
  ]
  ++ isThere "cloud-hypervisor"
  ++ isThere "vhost-device-vsock";
in
# A derivation of its own: `flake` changes with every file of the repository, and firn need not be built for that.
pkgs.runCommand "firn-${firn.version}"
  {
    nativeBuildInputs = [ pkgs.makeWrapper ];
    passthru.unwrapped = firn;
    inherit (firn) version meta;
  }
  ''
    mkdir -p $out/bin
    makeWrapper ${firn}/bin/firn $out/bin/firn --suffix PATH : ${lib.makeBinPath programs} \
      --set-default FIRN_FLAKE ${flake}
    ln -s ${agent}/bin/firn-agent $out/bin/firn-agent
    ln -s ${firn}/share $out/share
  ''
