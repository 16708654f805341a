# A NixOS guest under firn. Runs where nixpkgs and nested KVM are: nix build .#checks.x86_64-linux.guest
{ inputs, packages }:
{
  name = "firn-guest";
  nodes.machine = {
    imports = [ inputs.self.nixosModules.host ];
    services.firn.enable = true;
    virtualisation = {
      memorySize = 4096;
      cores = 2;
      additionalPaths = [ packages.guest ];
    };
  };
  testScript = ''
    import json

    machine.wait_for_unit("firn.socket")
    manifest = json.loads(machine.succeed("cat ${packages.guest}/manifest.json"))

    with subtest("the manifest names files that are there"):
        for field in ("kernel", "initrd"):
            machine.succeed(f"test -s {manifest[field]}")
        sum = machine.succeed("sha256sum ${packages.firn-agent}/bin/firn-agent").split()[0]
        assert manifest["agent"]["sha256"] == sum

    with subtest("a vm runs a command"):
        assert machine.succeed("firn run -i vm -- uname -s").strip() == "Linux"
  '';
}
