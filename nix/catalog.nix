# The catalog: what `--with` and mkAgentSandbox know by name.
#
#   agents   coding agents: those of nixpkgs, and whatever `llmAgents` has (a package set like llm-agents.nix's), which
#            wins
#   tools    programs of nixpkgs
{ pkgs, llmAgents }:
let
  agentNames = [
    "aider-chat"
    "amp-cli"
    "claude-code"
    "codex"
    "crush"
    "gemini-cli"
    "goose-cli"
    "opencode"
    "qwen-code"
  ];
  toolNames = [
    "bash"
    "cacert"
    "cargo"
    "coreutils"
    "curl"
    "fd"
    "findutils"
    "gawk"
    "gcc"
    "git"
    "gnugrep"
    "gnumake"
    "gnused"
    "gnutar"
    "go"
    "gzip"
    "jq"
    "less"
    "nix"
    "nodejs_22"
    "python312"
    "ripgrep"
    "rustc"
    "zsh"
  ];
  # A set of packages may be smaller than nixpkgs.
  present =
    names:
    builtins.listToAttrs (
      builtins.concatMap (
        name:
        if pkgs ? ${name} then
          [
            {
              inherit name;
              value = pkgs.${name};
            }
          ]
        else
          [ ]
      ) names
    );
in
{
  # `default` is another name for one of them.
  agents = present agentNames // removeAttrs llmAgents [ "default" ];
  tools = present toolNames;
}
