# mkAgentSandbox: a root file system of packages that are named as the catalog names them, agents first, and of
# `extraPackages`, which are packages.
{ mkSandboxRootfs, catalog }:
{
  name,
  packages,
  extraPackages ? [ ],
  env ? { },
}:
let
  find =
    package:
    catalog.agents.${package} or catalog.tools.${package}
      or (throw "firn: unknown package '${package}': not found among the agents and tools of the catalog");
in
mkSandboxRootfs {
  inherit name env;
  packages = map find packages ++ extraPackages;
}
