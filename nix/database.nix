# Nix's database of an environment: the folder that is /nix/var/nix/db in a sandbox. What it knows is the environment's
# closure; so Nix can build on that wherever the store can be written to, as in a vm.
#
#   { environment } -> derivation
{ pkgs }:
{ environment }:
pkgs.runCommand "${environment.name}-database"
  {
    exportReferencesGraph = [
      "programs"
      environment.programs
      "runner"
      environment.runner
    ];
  }
  ''
    export HOME=$PWD NIX_REMOTE=local NIX_STATE_DIR=$PWD/state NIX_LOG_DIR=$PWD/log
    for graph in programs runner; do
      ${pkgs.nix}/bin/nix-store --option build-users-group "" --register-validity <$graph
    done
    mkdir $out
    cp state/db/db.sqlite state/db/schema $out/
  ''
