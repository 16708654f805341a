# mkSandbox: an environment as an artifact, in the layout of nix-sandbox-mcp and for both of firn's grades.
#
#   OUT/metadata.json     see metadata.nix
#   OUT/closure           every store path of the environment, one a line
#   OUT/database          Nix's database of these paths. Only with `nix`: then Nix is among the packages, and `nix build`
#                         works in a vm, where the store can be written to
#   OUT/bin/run           a jail of its own: code on stdin, streams, exit code
#   OUT/bin/session-run   a jail with firn-agent, which serves the listening Unix socket that is its descriptor 3.
#                         Only where there is an agent
{
  pkgs,
  jail,
  agent,
}:
{
  name,
  interpreter_type,
  packages,
  timeout_seconds ? 30,
  memory_mb ? 512,
  isolation ? null,
  nix ? false,
}:
let
  environment = import ./environment.nix { inherit pkgs; } {
    inherit name interpreter_type;
    packages = packages ++ (if nix then [ pkgs.nix ] else [ ]);
  };
  database = import ./database.nix { inherit pkgs; } { inherit environment; };
  metadata = import ./metadata.nix (
    {
      inherit
        environment
        timeout_seconds
        memory_mb
        isolation
        ;
    }
    // (
      if nix then
        {
          database = "database";
          # There is no network to substitute from, nobody else to build, and what a sandbox is for a build is the vm.
          env.NIX_CONFIG = ''
            experimental-features = nix-command flakes
            build-users-group =
            sandbox = false
            substituters =
            build-hook =
            flake-registry =
          '';
        }
      else
        { }
    )
  );
  jailed = import ./jailed.nix { inherit pkgs jail; };
  run = jailed {
    inherit environment;
    name = "sandbox-${environment.name}";
    program = "${environment.runner}/bin/run-${environment.name}";
  };
  serve = pkgs.writeShellScriptBin "serve-${environment.name}" ''
    cd /workspace
    exec ${agent}/bin/firn-agent --listen-fd 3
  '';
  session = jailed {
    inherit environment;
    name = "session-${environment.name}";
    program = "${serve}/bin/serve-${environment.name}";
  };
  sessionRun =
    if agent == null then
      ""
    else
      "ln -s ${session}/bin/session-${environment.name} $out/bin/session-run";
in
pkgs.runCommand "sandbox-${environment.name}"
  {
    passthru = {
      inherit environment metadata;
    };
  }
  ''
    mkdir -p $out/bin
    cp ${pkgs.writeText "metadata.json" (builtins.toJSON metadata)} $out/metadata.json
    cp ${environment.closure} $out/closure
    ln -s ${run}/bin/sandbox-${environment.name} $out/bin/run
    ${if nix then "cp -r ${database} $out/database" else ""}
    ${sessionRun}
  ''
