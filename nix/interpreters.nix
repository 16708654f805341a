# The languages a sandbox takes code in: how code on stdin reaches the interpreter.
#
# `argument`: all of stdin is one argument of `command`; code too long for one goes into a file that `file` runs.
# `pipe`: `command` reads stdin itself.
{
  python = {
    mode = "argument";
    command = "python3 -c";
    file = "python3";
  };
  bash = {
    mode = "pipe";
    command = "bash -s";
  };
  node = {
    mode = "argument";
    command = "node -e";
    file = "node";
  };
}
