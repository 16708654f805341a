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

    run = "firn run --env ${packages.guest}"

    with subtest("the image is booted: systemd is PID 1, and NixOS's programs are found"):
        assert machine.succeed(f"{run} -- cat /proc/1/comm").strip() == "systemd"
        assert machine.succeed(f"{run} -- sh -c 'command -v nixos-version'").strip() == "/run/current-system/sw/bin/nixos-version"

    with subtest("a command has a control group with the limit that was asked for"):
        group = "/system.slice/firn-agent.service/commands"
        assert machine.succeed(f"{run} --pids 77 -- cat /proc/self/cgroup").strip() == f"0::{group}"
        assert machine.succeed(f"{run} --pids 77 -- cat /sys/fs/cgroup{group}/pids.max").strip() == "77"

    with subtest("a workspace is written back"):
        machine.succeed("mkdir /tmp/project")
        machine.succeed(f"{run} -w /tmp/project -- sh -c 'echo written >file'")
        assert machine.succeed("cat /tmp/project/file") == "written\n"

    with subtest("of the host's store there is the guest's closure, read-only"):
        closure = machine.succeed("LC_ALL=C sort ${packages.guest}/closure")
        assert machine.succeed(f"{run} -- sh -c 'printf \"%s\\n\" /nix/.ro-store/* | sed s,.ro-store,store, | LC_ALL=C sort'") == closure
        machine.fail(f"{run} -- touch /nix/.ro-store/new")
  '';
}
