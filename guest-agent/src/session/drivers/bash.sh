# Runs code of a session. This text is bash's standard input, and so are the orders that follow it:
#
#   agent -> driver   "run RUN NONCE LENGTH ARTIFACTS STDIN\n", LENGTH bytes of code, and then a line that says
#                     that the run is over and starts $__firn, below, for the next
#   driver -> agent   one packet each: "ready", "begun RUN NONCE", "done RUN NONCE OUTCOME CODE"
#
# Bash is an interactive one: SIGINT, an unset variable under `set -u` and the like lead back to its top
# level, which reads the next line of its input. That is the one behind the code: so whatever ends the code,
# its end is told. Where it has been told before, the agent passes over it.
#
# The code can replace neither $__firn, which is a constant, nor with functions or aliases what it calls,
# which is builtins; and what it does once the code has run it does not learn from variables.
PS1= PS2= PROMPT_COMMAND= HISTFILE=
set +m +H +o history
shopt -s expand_aliases
__firn_status=0 __firn_x= __firn_busy= __firn_rearm=1
declare -r __firn='
__firn_busy= PS1= PS2= PROMPT_COMMAND=
if [[ -n ${__firn_rearm-} ]]; then
    __firn_rearm=
    \builtin trap "if [[ -n \${__firn_busy-} ]]; then __firn_busy= __firn_rearm=1; \builtin trap - INT; \builtin kill -INT \$\$; fi" INT
fi
\builtin printf ready >&@REPORTS@
IFS=" " \builtin read -r -u 0 __firn_word __firn_run __firn_nonce __firn_length FIRN_ARTIFACTS __firn_stdin || \builtin exit 70
IFS= LC_ALL=C \builtin read -r -N "$__firn_length" -u 0 __firn_code
# Not as a builtin: it would be redirected itself, and for its own time.
[[ -e /dev/fd/1 ]] || \exec >&@OUT@
[[ -e /dev/fd/2 ]] || \exec 2>&@ERR@
\builtin export FIRN_ARTIFACTS
if [[ $__firn_stdin != - ]]; then __firn_begun="begun $__firn_run $__firn_nonce"; else __firn_stdin=/dev/fd/@NULL@ __firn_begun=; fi
\builtin eval "
    {
        ${__firn_begun:+\builtin printf %s \"$__firn_begun\" >&@REPORTS@}
        __firn_busy=1
        if [[ ${__firn_status:-0} != 0 && \$- != *e* ]]; then (exit ${__firn_status:-0}); else :; fi
        \builtin eval \"${__firn_x-}\$__firn_code\"
    } 0<$__firn_stdin
    { __firn_status=\$? __firn_busy= __firn_x=; \exec 0<&@ORDERS@; \set +v; PS1= PS2= PROMPT_COMMAND=; if [[ \$- == *x* ]]; then \set +x; __firn_x=\"set -x; \"; fi; } 2>/dev/null
    __firn_code=
    \builtin printf \"done $__firn_run $__firn_nonce ok %s\" \"\$__firn_status\" >&@REPORTS@
"'
\builtin eval "$__firn"
