# The catalog as plain data, in the shape of `firn catalog --json`.
catalog:
builtins.mapAttrs
  (_: builtins.mapAttrs (_: package: { description = package.meta.description or ""; }))
  {
    inherit (catalog) agents tools;
  }
