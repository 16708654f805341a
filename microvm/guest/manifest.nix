# The guest manifest as a value: what firn must know to boot a guest image. Its fields are those that the host reads
# (host/src/vm/image/manifest.rs), but for the agent's checksum, which is known when the image is built.
#
# It names nothing of one sandbox and nothing of one VMM: of the kernel's parameters those that say where the console is
# and how to end are left out, since each VMM adds its own.
{
  name,
  # Absolute paths: an uncompressed vmlinux with a PVH entry point, and the initial ramdisk.
  kernel,
  initrd,
  # uname -r
  kernelRelease,
  kernelVersion,
  parameters,
  # In MiB: a guest is not booted with less.
  memory,
  vcpus,
  # The virtio-fs tag by which the guest mounts what it is shown of the host's store, which the file `closure` beside the
  # manifest lists; null: the guest brings a disk with its own, which firn does not boot yet.
  storeTag,
  storeDisk ? null,
  agentVersion,
  protocol,
  # RFC 3339. Not the time of the build, which would make two builds differ.
  builtAt,
}:
let
  isOfVmm =
    parameter:
    builtins.any (prefix: builtins.match "${prefix}=.*" parameter != null) [
      "console"
      "earlyprintk"
      "panic"
      "reboot"
    ];
  # A repeated parameter is a list's; the first of equals stays.
  distinct =
    list:
    builtins.foldl' (kept: item: if builtins.elem item kept then kept else kept ++ [ item ]) [ ] list;
  atLeast =
    least: what: number:
    if number >= least then number else throw "firn: a guest has at least ${toString least} ${what}";
in
{
  manifest_version = 1;
  inherit name;
  kind = "nixos";
  inherit kernel;
  kernel_format = "elf";
  kernel_release = kernelRelease;
  inherit initrd;
  cmdline = builtins.concatStringsSep " " (
    distinct (builtins.filter (parameter: !isOfVmm parameter) parameters)
  );
  memory_mib = atLeast 256 "MiB of memory" memory;
  vcpus = atLeast 1 "vCPU" vcpus;
  store =
    if storeTag != null then
      {
        kind = "virtiofs";
        tag = storeTag;
        closure = "closure";
      }
    else if storeDisk != null then
      {
        kind = "disk";
        path = storeDisk;
      }
    else
      throw "firn: a guest has its store from a share or from a disk";
  agent = {
    version = agentVersion;
    inherit protocol;
  };
  # The initial ramdisk loads its modules itself.
  modules = [ ];
  source = {
    kind = "package";
    name = "linux";
    version = kernelVersion;
  };
  built_at = builtAt;
}
