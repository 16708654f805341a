# A guest for Codex. The vm is its sandbox: `codex exec --dangerously-bypass-approvals-and-sandbox …` inside.
{ pkgs, ... }:
{
  firn.guest.name = "codex";
  environment.systemPackages = [
    pkgs.codex
    pkgs.git
    pkgs.ripgrep
  ];
  microvm = {
    mem = 2048;
    vcpu = 2;
  };
}
