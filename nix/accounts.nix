# The users of a sandbox, as those of firn's own jails and vms.
{
  passwd = ''
    root:x:0:0:root:/root:/bin/bash
    sandbox:x:1000:1000:sandbox user:/home/sandbox:/bin/bash
    nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
  '';
  group = ''
    root:x:0:
    sandbox:x:1000:
    nogroup:x:65534:
  '';
}
