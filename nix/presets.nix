# The environments that come with firn, as arguments of mkSandbox.
{ pkgs }:
{
  shell = {
    name = "shell";
    interpreter_type = "bash";
    packages = with pkgs; [
      bash
      coreutils
      gnused
      gnugrep
      gawk
      findutils
      jq
      tree
      diffutils
      file
      bc
    ];
  };
  python = {
    name = "python";
    interpreter_type = "python";
    packages = [
      (pkgs.python3.withPackages (packages: [ packages.pyyaml ]))
      pkgs.coreutils
    ];
  };
  node = {
    name = "node";
    interpreter_type = "node";
    packages = [
      pkgs.nodejs
      pkgs.coreutils
    ];
  };
}
