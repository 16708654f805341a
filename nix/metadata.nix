# What an artifact's metadata.json says, as a value. The first four fields are those of nix-sandbox-mcp; with the others
# firn makes the sandbox itself, a jail or a vm, and shows it the closure and nothing else.
#
#   environment   store path of the programs: bin/ becomes the sandbox's /bin
#   interpreter   the program that runs the code on its stdin
#   closure       the file beside metadata.json that names every store path to show, one a line
#   env           variables of every command
#   database      the folder beside metadata.json that is Nix's database; absent: there is none
#
# isolation, "jail" or "vm", is that of a model's calls which name none; without it the server's.
{
  environment,
  timeout_seconds ? 30,
  memory_mb ? 512,
  isolation ? null,
  env ? { },
  database ? null,
}:
let
  atLeastOne =
    what: number:
    if builtins.isInt number && number >= 1 then
      number
    else
      throw "${what} of '${environment.name}' must be a whole number, 1 or more";
in
{
  inherit (environment) name;
  interpreter_type = environment.interpreter;
  timeout_seconds = atLeastOne "timeout_seconds" timeout_seconds;
  memory_mb = atLeastOne "memory_mb" memory_mb;
  environment = "${environment.programs}";
  interpreter = "${environment.runner}/bin/run-${environment.name}";
  closure = "closure";
  inherit env;
}
// (
  if isolation == null then
    { }
  else if
    builtins.elem isolation [
      "jail"
      "vm"
    ]
  then
    { inherit isolation; }
  else
    throw "isolation of '${environment.name}' must be \"jail\" or \"vm\""
)
// (if database == null then { } else { inherit database; })
