// Runs code of a session. Its orders come from one descriptor and its reports go to another, both above the
// numbers that code closes in passing; 1 and 2 belong to the code.
//
//   agent -> driver   "run RUN NONCE LENGTH ARTIFACTS STDIN\n", then LENGTH bytes of code
//   driver -> agent   one packet each: "ready", "begun RUN NONCE", "done RUN NONCE OUTCOME CODE"
//
// What it uses while code runs it holds itself: the code may replace whatever it can name.
'use strict';
(function drive(orders, reports, require, process) {
  const fs = require('fs'), net = require('net'), util = require('util'), vm = require('vm');
  const { writeSync, openSync, closeSync } = fs;
  const { inspect } = util, { Script } = vm;
  const { setImmediate, setTimeout, clearTimeout, Buffer, Error } = globalThis;
  const out = process.stdout, err = process.stderr, env = process.env;
  const sayOut = out.write.bind(out), sayErr = err.write.bind(err);
  const dynamic = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;

  let current = null;       // The run that is under way.
  let late = [];            // Errors that came between two runs.
  let cells = 0, repl = null;

  // ---- Errors -----------------------------------------------------------------------------

  const CELL = /<cell \d+>/;

  // An error as it is shown: of its frames only the code's own, and those it called.
  function shown(error) {
    try {
      if (error === null || typeof error !== 'object' || typeof error.stack !== 'string') {
        return 'Uncaught ' + inspect(error);
      }
      const lines = error.stack.split('\n');
      let last = -1;
      lines.forEach((line, at) => { if (/^\s+at /.test(line) && CELL.test(line)) last = at; });
      const isFrame = (line) => /^\s+at /.test(line);
      const kept = lines.filter((line, at) => !isFrame(line) || (at <= last && !/\(?node:/.test(line)));
      const stack = error.stack;
      let text;
      try {
        error.stack = kept.join('\n');
        text = inspect(error);
      } finally {
        error.stack = stack;
      }
      return (text.startsWith('<cell ') ? '' : 'Uncaught ') + text;
    } catch (_) {
      return 'Uncaught error that cannot be shown';
    }
  }

  function tell(error) {
    try { sayErr(shown(error) + '\n'); } catch (_) { /* Nothing is left to say it on. */ }
  }

  // An error that nobody caught, of a timer or a promise.
  function stray(error) {
    if (current === null) {
      if (late.length < 16) late.push(error);
      return;
    }
    current.failed = true;
    tell(error);
  }

  const isInterrupt = (error) =>
    error !== null && typeof error === 'object' && error.code === 'ERR_SCRIPT_EXECUTION_INTERRUPTED';

  // ---- Code -------------------------------------------------------------------------------

  // With `await`: as node's own prompt does it, which declares what the code declares for later runs too. A
  // loop in it cannot be interrupted: that would leave a moment behind in which the signal ends node, and
  // what is awaited is what is interrupted as a rule.
  function asPrompt(code, name, settle) {
    const stream = require('stream');
    if (repl === null) {
      repl = new (require('repl').REPLServer)({
        input: new stream.PassThrough(),
        output: new stream.Writable({ write(chunk, encoding, done) { done(); } }),
        prompt: '', terminal: false, useGlobal: true,
      });
      if (repl._domain) {
        repl._domain.removeAllListeners('error');
        repl._domain.on('error', (error) => {
          const thrown = error !== null && typeof error === 'object' && error.domainThrown;
          if (current !== null && current.settle !== null && !thrown) current.settle({ error }); else stray(error);
        });
      }
    }
    const finish = (error, value) => {
      const Recoverable = require('repl').Recoverable;
      if (error instanceof Recoverable) error = error.err;
      settle(error === null || error === undefined ? { value } : { error });
    };
    repl.eval(code, globalThis, name, finish);
  }

  function compile(code, name) {
    const options = { filename: name, importModuleDynamically: dynamic };
    if (/^\s*\{/.test(code) && !/;\s*$/.test(code)) {
      // An object rather than a block, if it is one.
      try { return new Script(`(${code.trim()}\n)`, options); } catch (_) { /* It is not. */ }
    }
    return new Script(code, options);
  }

  function evaluate(code, settle) {
    const name = `<cell ${++cells}>`;
    if (/\bawait\b/.test(code)) {
      asPrompt(code, name, settle);
      return;
    }
    // What is thrown may be anything, `null` and `undefined` too.
    let end;
    try {
      end = { value: compile(code, name).runInThisContext({ displayErrors: false, breakOnSigint: true }) };
    } catch (error) {
      end = { error };
    }
    settle(end);
  }

  // Evaluating code takes the signal away from who listens; so does the end of that.
  function listen() {
    const listeners = process.rawListeners('SIGINT').filter((listener) => listener !== interrupted);
    process.removeAllListeners('SIGINT');
    process.on('SIGINT', interrupted);
    for (const listener of listeners) process.on('SIGINT', listener);
  }

  function interrupted() {
    if (current === null || current.settle === null) return;
    const error = new Error('The run was interrupted');
    error.code = 'ERR_SCRIPT_EXECUTION_INTERRUPTED';
    error.stack = 'Error: The run was interrupted';
    current.settle({ error });
  }

  function run(words, code) {
    const [, number, nonce, , artifacts, stdin] = words;
    const mine = current = { failed: false, settle: null };
    const tag = `${number} ${nonce}`;
    env.FIRN_ARTIFACTS = artifacts;
    for (const error of late.splice(0)) {
      sayErr('Since the run before:\n');
      tell(error);
    }
    if (stdin !== '-') takeStdin(stdin, tag);
    let settled = false;
    const settle = (end) => {
      if (settled) return;
      settled = true;
      mine.settle = null;
      listen();
      let outcome = 'ok';
      if ('error' in end && isInterrupt(end.error)) mend();
      if ('error' in end) {
        outcome = isInterrupt(end.error) ? 'interrupted' : 'exception';
        tell(end.error);
      } else if (end.value !== undefined) {
        try {
          sayOut(inspect(end.value) + '\n');
        } catch (failure) {
          outcome = 'exception';
          tell(failure);
        }
      }
      // Rejections that nobody handles are known when this turn is over.
      setImmediate(() => flushed(() => {
        if (outcome === 'ok' && mine.failed) outcome = 'exception';
        current = null;
        if (stdin !== '-') leaveStdin();
        const status = outcome === 'ok' ? 0 : outcome === 'interrupted' ? 130 : 1;
        report(`done ${tag} ${outcome} ${status}`);
      }));
    };
    mine.settle = settle;
    evaluate(code, settle);
  }

  // Pipes take what is written at once, unless the code has arranged otherwise. What it has broken is not
  // waited for long.
  function flushed(then) {
    let open = 2, timer = null;
    const one = () => {
      if (--open !== 0) return;
      if (timer !== null) clearTimeout(timer);
      then();
    };
    for (const stream of [out, err]) {
      if (stream.writableLength > 0 && !stream.destroyed) stream.write('', one); else one();
    }
    if (open > 0) timer = setTimeout(() => { open = 1; one(); }, 1000);
  }

  // A script that is interrupted while it writes leaves its stream in the middle of that, for ever.
  function mend() {
    for (const { _writableState: state } of [out, err]) {
      try {
        if (state.writing && typeof state.onwrite === 'function') state.onwrite();
      } catch (_) { /* It stays broken. */ }
    }
  }

  // ---- Stdin ------------------------------------------------------------------------------

  function replaceStdin(path) {
    try { closeSync(0); } catch (_) { /* It was closed. */ }
    // The lowest number that is free.
    openSync(path, 'r');
    Object.defineProperty(process, 'stdin', {
      configurable: true, enumerable: true,
      get() {
        const stream = new fs.ReadStream(null, { fd: 0, autoClose: false });
        Object.defineProperty(process, 'stdin', { configurable: true, enumerable: true, value: stream });
        return stream;
      },
    });
  }

  function takeStdin(path, tag) {
    replaceStdin(path);
    report(`begun ${tag}`);
  }

  function leaveStdin() {
    replaceStdin('/dev/null');
  }

  // ---- Orders -----------------------------------------------------------------------------

  function report(packet) {
    try { writeSync(reports, packet); } catch (_) { process.reallyExit(70); }
  }

  process.on('uncaughtException', stray);
  process.on('unhandledRejection', stray);
  listen();

  let chunks = [], held = 0, wanted = 0;
  const socket = new net.Socket({ fd: orders, readable: true, writable: false });
  socket.on('data', (chunk) => {
    chunks.push(chunk);
    held += chunk.length;
    if (held < wanted) return;
    const buffer = Buffer.concat(chunks);
    chunks = [buffer];
    const end = buffer.indexOf(10);
    if (end < 0) return;
    const words = buffer.toString('latin1', 0, end).split(' ');
    wanted = end + 1 + Number(words[3]);
    if (held < wanted) return;
    const code = buffer.toString('utf8', end + 1, wanted);
    chunks = [];
    held = wanted = 0;
    run(words, code);
  });
  socket.on('end', () => process.reallyExit(70));
  socket.on('error', () => process.reallyExit(70));
  process.argv.splice(1);
  report('ready');
})(Number(process.argv[1]), Number(process.argv[2]), require, process);
