# What the functions of nix/ are expected to give. The runner is tried on failures too: one that cannot fail says nothing.
{ root }:
let
  inherit (import ./packages.nix { inherit root; })
    firn
    pkgs
    shell
    agents
    ;
  sandbox =
    arguments:
    (firn.mkSandbox (
      {
        name = "x";
        interpreter_type = "python";
        packages = [ ];
      }
      // arguments
    )).metadata;
  runner = import ./runner.nix;
  interpreters = import ../interpreters.nix;
  names = builtins.attrNames;
  manifest =
    arguments:
    import ../../microvm/guest/manifest.nix (
      {
        name = "nixos";
        kernel = "/nix/store/k/vmlinux";
        initrd = "/nix/store/i/initrd";
        kernelRelease = "6.12.1";
        kernelVersion = "6.12.1";
        parameters = [ ];
        memory = 1024;
        vcpus = 2;
        storeTag = "store";
        agentVersion = "0.1.0";
        protocol = 1;
        builtAt = "1970-01-01T00:00:00Z";
      }
      // arguments
    );
  # The units that a guest's agent has, without NixOS.
  guestUnits =
    (import ../../microvm/guest/agent.nix {
      config.firn.guest = {
        enable = true;
        agent = "/nix/store/a";
        codex = false;
      };
      lib = {
        mkIf = _: value: value;
        optional = condition: value: if condition then [ value ] else [ ];
      };
    }).config.systemd.units;
  # What the host expects, as its own tests have it: the file has a heading, which ends with a line of dashes.
  hostManifest =
    let
      text = builtins.readFile ../../host/src/vm/image/snapshots/firn__vm__image__manifest__tests__the_format_is_what_it_was.snap;
    in
    builtins.fromJSON (builtins.elemAt (builtins.split "\n---\n" text) 2);
in
{
  interpreters-are-those-of-the-artifact-format = {
    expr = builtins.mapAttrs (_: interpreter: interpreter.command) interpreters;
    expected = {
      bash = "bash -s";
      node = "node -e";
      python = "python3 -c";
    };
  };
  limits-have-defaults = {
    expr = {
      inherit (sandbox { })
        name
        interpreter_type
        timeout_seconds
        memory_mb
        closure
        env
        ;
    };
    expected = {
      name = "x";
      interpreter_type = "python";
      timeout_seconds = 30;
      memory_mb = 512;
      closure = "closure";
      env = { };
    };
  };
  limits-are-passed-on = {
    expr = { inherit (shell.metadata) timeout_seconds memory_mb; };
    expected = {
      timeout_seconds = 20;
      memory_mb = 256;
    };
  };
  isolation-is-passed-on-where-it-is-said = {
    expr = map (arguments: (sandbox arguments).isolation or "not said") [
      { }
      { isolation = "vm"; }
    ];
    expected = [
      "not said"
      "vm"
    ];
  };
  an-unknown-isolation-is-refused = {
    expr = (sandbox { isolation = "chroot"; }).isolation;
    refused = true;
  };
  the-environment-is-a-store-path = {
    expr = builtins.match "/nix/store/[a-z0-9]{32}-x-programs" (sandbox { }).environment != null;
    expected = true;
  };
  the-interpreter-is-a-program-of-the-closure = {
    expr = builtins.match "/nix/store/[a-z0-9]{32}-run-x/bin/run-x" (sandbox { }).interpreter != null;
    expected = true;
  };
  one-environment-is-one-path-whatever-its-limits = {
    expr = (sandbox { memory_mb = 1; }).environment == (sandbox { timeout_seconds = 1; }).environment;
    expected = true;
  };
  an-unknown-interpreter-is-refused = {
    expr = (sandbox { interpreter_type = "cobol"; }).interpreter_type;
    refused = true;
  };
  no-memory-is-refused = {
    expr = sandbox { memory_mb = 0; };
    refused = true;
  };
  half-a-second-is-refused = {
    expr = sandbox { timeout_seconds = 0.5; };
    refused = true;
  };
  a-name-is-no-path = {
    expr = sandbox { name = "../x"; };
    refused = true;
  };
  variables-of-a-rootfs-are-kept = {
    expr = agents.metadata.env;
    expected = {
      GREETING = "hello";
    };
  };
  an-agent-is-found-before-a-tool = {
    expr =
      let
        inherit
          (import ../. {
            inherit pkgs;
            jail = null;
            llmAgents = {
              git = pkgs.codex;
              default = pkgs.codex;
            };
          })
          catalog
          ;
      in
      names catalog.agents ++ [ (catalog.agents.git == pkgs.codex) ];
    expected = [
      "codex"
      "git"
      true
    ];
  };
  an-unknown-package-is-refused = {
    expr =
      (firn.mkAgentSandbox {
        name = "x";
        packages = [ "no-such-package" ];
      }).metadata;
    refused = true;
  };
  the-catalog-has-what-the-packages-have = {
    expr = firn.catalogIndex;
    expected = {
      agents.codex.description = "Writes code";
      tools = {
        bash.description = "";
        cacert.description = "";
        coreutils.description = "";
        git.description = "Keeps track of changes";
        nix.description = "";
      };
    };
  };
  profiles-are-nixos = {
    expr = builtins.mapAttrs (
      _: profile: "${profile.network} ${toString (builtins.length profile.packages)}"
    ) firn.profiles;
    expected = {
      build-install = "full 17";
      debug-network = "full 10";
      offline-review = "off 9";
      strict = "off 3";
    };
  };
  presets-are-bundled = {
    expr = names firn.presets;
    expected = [
      "node"
      "python"
      "shell"
    ];
  };
  a-sandbox-without-an-agent-has-no-sessions = {
    expr = builtins.match ".*session-run.*" (builtins.toString shell.args) == null;
    expected = true;
  };
  a-manifest-has-the-fields-that-the-host-reads = {
    expr = names (manifest { });
    expected = names hostManifest;
  };
  the-agents-checksum-is-left-to-the-build = {
    expr = names ((manifest { }).agent // { sha256 = null; });
    expected = names hostManifest.agent;
  };
  a-manifest-is-of-the-hosts-version = {
    expr = (manifest { }).manifest_version;
    expected = hostManifest.manifest_version;
  };
  parameters-of-a-vmm-are-left-to-it = {
    expr =
      (manifest {
        parameters = [
          "console=ttyS0"
          "quiet"
          "panic=-1"
          "reboot=t"
          "earlyprintk=ttyS0"
          "quiet"
          "init=/nix/store/t/init"
        ];
      }).cmdline;
    expected = "quiet init=/nix/store/t/init";
  };
  a-store-is-a-share-or-a-disk = {
    expr = map (arguments: (manifest arguments).store) [
      { }
      {
        storeTag = null;
        storeDisk = "/nix/store/d/store.erofs";
      }
    ];
    expected = [
      {
        kind = "virtiofs";
        tag = "store";
        closure = "closure";
      }
      {
        kind = "disk";
        path = "/nix/store/d/store.erofs";
      }
    ];
  };
  the-agents-unit-names-its-program = {
    expr = builtins.match ".*\nExecStart=([^\n]*)\n.*" guestUnits."firn-agent.service".text;
    expected = [ "/nix/store/a/bin/firn-agent --vsock" ];
  };
  a-guest-without-a-store-is-refused = {
    expr = manifest { storeTag = null; };
    refused = true;
  };
  a-guest-with-too-little-memory-is-refused = {
    expr = manifest { memory = 64; };
    refused = true;
  };
  the-runner-tells-what-differs = {
    expr = runner {
      wrong = {
        expr = 1;
        expected = 2;
      };
      right = {
        expr = 1;
        expected = 1;
      };
    };
    expected = [ "wrong: expected 2, got 1" ];
  };
  the-runner-tells-what-throws-and-what-does-not = {
    expr = runner {
      throws = {
        expr = throw "no";
        expected = 1;
      };
      gives = {
        expr = 1;
        refused = true;
      };
    };
    expected = [
      "gives: it was not refused, but gave 1"
      "throws: evaluation failed"
    ];
  };
}
