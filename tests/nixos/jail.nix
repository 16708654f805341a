# A host with services.firn: a jail by the environment's own wrapper and by firn, with only its closure visible. Runs where
# nixpkgs and KVM are: nix build .#checks.x86_64-linux.jail
{ inputs, packages }:
{
  name = "firn-jail";
  nodes.machine = {
    imports = [ inputs.self.nixosModules.host ];
    services.firn = {
      enable = true;
      environments = [ packages."presets.shell" ];
    };
  };
  testScript = ''
    machine.wait_for_unit("firn.socket")
    shell = "${packages."presets.shell"}"
    outside = "${packages."presets.python"}"

    with subtest("the wrapper needs no daemon and no variables"):
        assert machine.succeed(f"echo 'echo 6*7 | bc' | env -i {shell}/bin/run").strip() == "42"

    with subtest("firn shows the closure and nothing else"):
        run = f"firn run -i jail --env {shell} --"
        assert machine.succeed(f"{run} bash -c 'echo 6*7 | bc'").strip() == "42"
        machine.fail(f"{run} test -e {outside}")
        machine.fail(f"{run} test -e /run/current-system")

    with subtest("an environment is known by its name"):
        machine.succeed("firn run -i jail --env shell -- true")

    with subtest("root without the group is not needed"):
        machine.succeed("stat -c %a:%G /run/firn/firn.sock | grep -x 660:firn")
  '';
}
