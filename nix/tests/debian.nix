# A set of packages without nixpkgs: static programs of Debian, with the few functions of nixpkgs that nix/ uses, under
# their names and with the same results where nix/ looks at them. It is what tests build environments from.
#
#   root   a path: the folder into which `setup.sh nix` unpacked Debian's packages
{ root }:
let
  file =
    name: path:
    builtins.path {
      inherit name;
      path = root + "/${path}";
    };
  shell = file "bash" "usr/bin/bash-static";
  tools = file "busybox" "usr/bin/busybox";

  # derive NAME ATTRIBUTES SCRIPT: runs SCRIPT in Nix's build sandbox.
  derive =
    name: attributes: script:
    let
      built = derivation (
        {
          inherit name;
          system = "x86_64-linux";
          builder = shell;
          args = [
            "-euc"
            script
          ];
        }
        // removeAttrs attributes [ "passthru" ]
      );
    in
    built // (attributes.passthru or { });
  withTools = attributes: { PATH = "${coreutils}/bin"; } // attributes;

  # busybox reads what it is to do from its name, which in the store has a hash before it.
  bootstrap = ''
    tool() { (exec -a busybox ${tools} "$@"); }
  '';
  bash = derive "bash" { } ''
    ${bootstrap}
    tool mkdir -p $out/bin
    tool cp ${shell} $out/bin/bash
    tool ln -s bash $out/bin/sh
  '';
  coreutils = derive "coreutils" { } ''
    ${bootstrap}
    tool mkdir -p $out/bin
    tool cp ${tools} $out/bin/busybox
    for applet in $(tool --list); do
      case $applet in
      ash | sh | busybox) ;;
      *) tool ln -s busybox $out/bin/$applet ;;
      esac
    done
  '';
  runCommand =
    name: attributes: script:
    derive name (withTools attributes) script;
in
{
  inherit bash coreutils runCommand;

  # Debian's is not static: it is started through the dynamic linker that is beside it.
  bubblewrap = runCommand "bubblewrap" { } ''
    mkdir -p $out/bin $out/lib
    cp ${file "bwrap" "usr/bin/bwrap"} $out/lib/bwrap
    cp ${file "ld.so" "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"} $out/lib/ld.so
    cp ${file "libc" "usr/lib/x86_64-linux-gnu/libc.so.6"} $out/lib/libc.so.6
    cp ${file "libcap" "usr/lib/x86_64-linux-gnu/libcap.so.2"} $out/lib/libcap.so.2
    cp ${file "libselinux" "usr/lib/x86_64-linux-gnu/libselinux.so.1"} $out/lib/libselinux.so.1
    cp ${file "libpcre2" "usr/lib/x86_64-linux-gnu/libpcre2-8.so.0"} $out/lib/libpcre2-8.so.0
    printf '#!%s\nexec %s --library-path %s %s "$@"\n' \
      ${bash}/bin/bash $out/lib/ld.so $out/lib $out/lib/bwrap >$out/bin/bwrap
    chmod 755 $out/bin/bwrap
  '';

  # Nix, started in the same way. It reads what it is to do from its name.
  nix =
    let
      libraries = builtins.path {
        name = "libraries";
        path = root + "/usr/lib/x86_64-linux-gnu";
        filter = path: type: type != "directory" && builtins.match ".*[.]so([.].*)?" path != null;
      };
    in
    runCommand "nix" { } ''
      mkdir -p $out/bin $out/lib
      cp -r ${libraries}/. $out/lib/
      cp ${file "nix" "usr/bin/nix"} $out/lib/nix
      for name in nix nix-store; do
        printf '#!%s\nexec %s --argv0 %s --library-path %s %s "$@"\n' \
          ${bash}/bin/bash $out/lib/ld-linux-x86-64.so.2 $name $out/lib $out/lib/nix >$out/bin/$name
        chmod 755 $out/bin/$name
      done
    '';

  # A program that does nothing but be there, in place of one that Debian has no static build of.
  fake =
    name:
    runCommand name { } ''
      mkdir -p $out/bin
      printf '#!%s\necho ${name} "$@"\n' ${bash}/bin/bash >$out/bin/${name}
      chmod 755 $out/bin/${name}
    '';

  writeText =
    name: text:
    runCommand name {
      inherit text;
      passAsFile = [ "text" ];
    } ''cp "$textPath" $out'';

  writeShellScriptBin =
    name: text:
    runCommand name
      {
        inherit text;
        passAsFile = [ "text" ];
      }
      ''
        mkdir -p $out/bin
        { printf '#!%s\n' ${bash}/bin/bash; cat "$textPath"; } >$out/bin/${name}
        chmod 755 $out/bin/${name}
      '';

  # The first of two files of one name wins, as with priorities that are alike and collisions that are ignored.
  buildEnv =
    {
      name,
      paths,
      ignoreCollisions ? false,
    }:
    runCommand name { collisions = if ignoreCollisions then "ignored" else "refused"; } ''
      mkdir $out
      for package in ${toString paths}; do
        cd $package
        find . ! -type d | while read -r file; do
          mkdir -p $out/''${file%/*}
          if [ ! -e $out/$file ] && [ ! -L $out/$file ]; then
            ln -s $package/$file $out/$file
          elif [ $collisions = refused ]; then
            exit 1
          fi
        done
      done
    '';

  # A graph names each path, who made it, and how many paths it refers to, which follow.
  closureInfo =
    { rootPaths }:
    let
      numbered = builtins.genList (index: [
        "closure-${toString index}"
        (builtins.elemAt rootPaths index)
      ]) (builtins.length rootPaths);
    in
    runCommand "closure-info" { exportReferencesGraph = builtins.concatLists numbered; } ''
      mkdir $out
      for graph in closure-*; do
        while read -r path; do
          echo $path
          read -r maker
          read -r count
          while [ $count -gt 0 ]; do
            read -r reference
            count=$((count - 1))
          done
        done <$graph
      done | sort -u >$out/store-paths
    '';
}
