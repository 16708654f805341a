# A flake with what `firn` takes from one, and what it must refuse. `run` puts it into a folder with nix/ and root/.
{
  outputs =
    _:
    let
      system = "x86_64-linux";
      built = import ./nix/tests/packages.nix { root = ./root; };
      inherit (built) firn pkgs;
      # An artifact by hand, which says what it likes.
      claims =
        closure:
        pkgs.runCommand "claims" { } ''
          mkdir $out
          echo '{"name":"x","interpreter_type":"bash","environment":"/etc","interpreter":"/etc/x","closure":"closure"}' \
            >$out/metadata.json
          echo ${closure} >$out/closure
        '';
    in
    {
      packages.${system} = {
        data = built.shell;
        other = built.python;
        sandbox-strict = built.strict;
        many = built.many 60;
        # Says that its code is for node, which it does not have.
        without-node = firn.mkSandbox {
          name = "without-node";
          interpreter_type = "node";
          packages = [ ];
        };
        broken = pkgs.runCommand "broken" { } ''
          echo "the reason"
          exit 1
        '';
        # Would have something built on the host in order to be evaluated.
        imports = import (pkgs.writeText "x.nix" "throw \"imported\"");
        impure = builtins.readFile /etc/hostname;
        escapes = claims "/etc";
      };
      mkAgentSandbox.${system} = firn.mkAgentSandbox;
      catalogIndex.${system} = firn.catalogIndex;
    };
}
