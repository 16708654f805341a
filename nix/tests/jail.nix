# Stands in for jail.nix, which CI cannot fetch: the combinators that nix/ uses, with the meaning they have there. Unlike
# the real one it has no base permissions to reset.
{ pkgs }:
name: program: permissions:
let
  quote = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
  bind =
    from: to: state:
    state // { arguments = "${state.arguments} --ro-bind ${quote from} ${quote to}"; };
  combinators = {
    reset = state: state;
    unsafe-add-raw-args = text: state: state // { arguments = "${state.arguments} ${text}"; };
    tmpfs = path: combinators.unsafe-add-raw-args "--tmpfs ${quote path}";
    ro-bind = bind;
    write-text = path: text: bind "${pkgs.writeText "jail-text" text}" path;
    add-pkg-deps =
      packages: state: state // { path = map (package: "${package}/bin") packages ++ state.path; };
    set-env =
      variable: value: state:
      state // { arguments = "${state.arguments} --setenv ${variable} ${quote value}"; };
    add-runtime = script: state: state // { runtime = state.runtime + script; };
    bind-nix-store-runtime-closure = state: state // { bound = true; };
  };
  state = builtins.foldl' (state: permission: permission state) {
    arguments = "";
    path = [ ];
    runtime = "";
    bound = false;
  } (permissions combinators);
  path = builtins.concatStringsSep ":" state.path;
  closure = pkgs.closureInfo {
    rootPaths = [ (pkgs.writeText "${name}-entry" "${program} ${path}") ];
  };
in
assert state.bound;
pkgs.writeShellScriptBin name ''
  set -euo pipefail
  RUNTIME_ARGS=()
  ${state.runtime}
  while read -r DEPENDENCY; do
    RUNTIME_ARGS+=(--ro-bind "$DEPENDENCY" "$DEPENDENCY")
  done <${closure}/store-paths
  exec ${pkgs.bubblewrap}/bin/bwrap ${state.arguments} --unshare-user --unshare-ipc --unshare-pid --unshare-net \
    --unshare-uts --unshare-cgroup --setenv PATH ${quote path} --new-session --die-with-parent \
    "''${RUNTIME_ARGS[@]}" -- ${program} "$@"
''
