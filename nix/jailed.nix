# A program of an environment in a jail that needs no daemon: bubblewrap, written by jail.nix.
#
#   { environment, name, program } -> derivation with bin/NAME
#
# No network, a /workspace that is gone at the end, and only the environment's closure of the store. The caller may
# show a project, read-only: PROJECT_DIR says where it is, PROJECT_MOUNT where it is to be (/project).
#
# jail.nix's base permissions are reset: they pass LANG, HOME and TERM on and fail where one of them is not set, as in
# a service, and they keep a passwd file in the caller's home.
{ pkgs, jail }:
{
  environment,
  name,
  program,
}:
let
  accounts = import ./accounts.nix;
  permissions = combinators: [
    combinators.reset
    (combinators.unsafe-add-raw-args "--proc /proc --dev /dev --clearenv")
    (combinators.tmpfs "/tmp")
    (combinators.tmpfs "/workspace")
    (combinators.ro-bind "${pkgs.bash}/bin/bash" "/bin/sh")
    (combinators.ro-bind "${environment.programs}/bin/env" "/usr/bin/env")
    (combinators.write-text "/etc/passwd" accounts.passwd)
    (combinators.write-text "/etc/group" accounts.group)
    (combinators.add-pkg-deps [ environment.programs ])
    (combinators.set-env "HOME" "/workspace")
    (combinators.set-env "TMPDIR" "/workspace")
    (combinators.set-env "LANG" "C.UTF-8")
    (combinators.set-env "TERM" "dumb")
    (combinators.add-runtime ''
      if [ -n "''${PROJECT_DIR:-}" ] && [ -d "$PROJECT_DIR" ]; then
        RUNTIME_ARGS+=(--ro-bind "$PROJECT_DIR" "''${PROJECT_MOUNT:-/project}")
      fi
    '')
    combinators.bind-nix-store-runtime-closure
  ];
in
jail name program permissions
