# nixo's profiles, with its names: which packages a sandbox has, whether it has a network, and what it may write to.
# The namespaces are those nixo names; firn makes all there are.
let
  offline = [
    "pid"
    "mount"
    "uts"
    "ipc"
    "net"
  ];
  online = [
    "pid"
    "mount"
    "uts"
    "ipc"
  ];
in
{
  strict = {
    packages = [
      "coreutils"
      "bash"
      "cacert"
    ];
    network = "off";
    namespaces = offline;
    writable = [ "/tmp" ];
  };
  offline-review = {
    packages = [
      "git"
      "cacert"
      "coreutils"
      "bash"
      "gnugrep"
      "gnused"
      "gawk"
      "findutils"
      "jq"
    ];
    network = "off";
    namespaces = offline;
    writable = [
      "/workspace"
      "/home/sandbox"
      "/tmp"
    ];
  };
  build-install = {
    packages = [
      "nodejs_22"
      "python312"
      "rustc"
      "cargo"
      "git"
      "curl"
      "cacert"
      "coreutils"
      "bash"
      "gnugrep"
      "gnused"
      "gawk"
      "findutils"
      "gnutar"
      "gzip"
      "gnumake"
      "gcc"
    ];
    network = "full";
    namespaces = online;
    writable = [
      "/workspace"
      "/home/sandbox"
      "/cache"
      "/tmp"
    ];
  };
  debug-network = {
    packages = [
      "nodejs_22"
      "python312"
      "git"
      "curl"
      "cacert"
      "coreutils"
      "bash"
      "inetutils"
      "netcat-gnu"
      "dig"
    ];
    network = "full";
    namespaces = online;
    writable = [
      "/workspace"
      "/home/sandbox"
      "/cache"
      "/tmp"
    ];
  };
}
