# An environment: the programs of a sandbox, what runs the code it is given, and the list of all store paths
# that these two need. It knows nothing of how it is isolated: a jail that it makes itself, one of firn's and a vm
# show the same paths.
#
#   { name, interpreter_type, packages } -> { name, interpreter, programs, runner, closure }
#
#   programs   a folder with bin/ and the like (buildEnv)
#   runner     bin/run-NAME: runs the code on its stdin in /workspace, with the programs on PATH
#   closure    a file: the store paths of both, one a line
{ pkgs }:
{
  name,
  interpreter_type,
  packages,
}:
let
  interpreters = import ./interpreters.nix;
  interpreter =
    interpreters.${interpreter_type}
      or (throw "Unknown interpreter_type: '${interpreter_type}'. Must be one of: python, bash, node");
  checkedName =
    if builtins.match "[A-Za-z0-9_][A-Za-z0-9_.-]*" name != null then
      name
    else
      throw "'${name}' cannot be the name of a sandbox: letters, digits, '_', '.' and '-', and no '.' or '-' at its beginning";
  programs = pkgs.buildEnv {
    name = "${checkedName}-programs";
    # The shell and its tools come last: a package that brings its own wins.
    paths = packages ++ [
      pkgs.bash
      pkgs.coreutils
    ];
    ignoreCollisions = true;
  };
  # The kernel takes no argument of 128 KiB or more (MAX_ARG_STRLEN); a character has up to four bytes. The full
  # stop keeps the newlines at the end of the code, which the shell would drop.
  take = {
    pipe = "exec ${interpreter.command}";
    argument = ''
      code=$(cat && printf .)
      code=''${code%.}
      if [ "''${#code}" -lt 32000 ]; then
        exec ${interpreter.command} "$code"
      fi
      file=$(mktemp)
      printf %s "$code" >"$file"
      exec ${interpreter.file} "$file"'';
  };
  runner = pkgs.writeShellScriptBin "run-${checkedName}" ''
    set -eu
    PATH=${programs}/bin''${PATH:+:$PATH}
    export PATH
    cd /workspace
    ${take.${interpreter.mode}}
  '';
in
{
  name = checkedName;
  interpreter = builtins.seq interpreter interpreter_type;
  inherit programs runner;
  closure = "${
    pkgs.closureInfo {
      rootPaths = [
        programs
        runner
      ];
    }
  }/store-paths";
}
