# apps: `nix run .#firn -- run -- python3 -c 'print(1)'`.
{ packages }:
let
  firn = {
    type = "app";
    program = "${packages.firn}/bin/firn";
    meta.description = "Runs untrusted code and coding agents in disposable sandboxes";
  };
in
{
  inherit firn;
  default = firn;
}
