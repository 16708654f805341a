# Runs code of a session. Its orders come from one descriptor and its reports go to another; 1 and 2 belong
# to the code. All of its own are above the numbers that code closes or replaces in passing, and no program that the
# code starts inherits them.
#
#   agent -> driver   "run RUN NONCE LENGTH ARTIFACTS STDIN\n", then LENGTH bytes of code
#   driver -> agent   one packet each: "ready", "begun RUN NONCE", "done RUN NONCE OUTCOME CODE"
#
# What it uses while code runs it holds itself: the code may replace whatever it can name.

def drive(orders, reports, null, kept_out, kept_err):
    import ast, builtins, fcntl, io, linecache, os, signal, sys, termios, time, traceback, types

    CELL, CELLS = '<cell %d>', 256
    KeyboardInterrupt, BaseException, SystemExit = (
        builtins.KeyboardInterrupt, builtins.BaseException, builtins.SystemExit)
    OSError, ValueError = builtins.OSError, builtins.ValueError
    isinstance, len, int, str, type = (
        builtins.isinstance, builtins.len, builtins.int, builtins.str, builtins.type)
    compile, eval, range = builtins.compile, builtins.eval, builtins.range
    read, write, getpid, leave, dup2, fstat = os.read, os.write, os.getpid, os._exit, os.dup2, os.fstat
    close, environ = os.close, os.environ
    ioctl, unread, sleep, clock = fcntl.ioctl, termios.FIONREAD, time.sleep, time.monotonic
    sigaction, handler_of, SIGINT, ignored = signal.signal, signal.getsignal, signal.SIGINT, signal.SIG_IGN
    modules = sys.modules
    own = getpid()

    for fd in (orders, reports, null, kept_out, kept_err):
        os.set_inheritable(fd, False)

    # ---- Output -----------------------------------------------------------------------------

    class Stream(io.FileIO):
        """Stdout or stderr. Who reads them has two pipes and cannot know which was written to first: so
        before the one is written to the other is empty, if its reader does not take too long."""
        last = None

        def write(self, data):
            other, Stream.last = Stream.last, self
            if other is not None and other is not self:
                try:
                    self.settle(other.fileno())
                except (OSError, ValueError):
                    pass
            return super().write(data)

        def settle(self, fd):
            until = None
            while ioctl(fd, unread, b'\0\0\0\0') != b'\0\0\0\0':
                now = clock()
                if until is None:
                    until = now + 0.25
                elif now > until:
                    return
                sleep(0.00002)

    def stream(fd, errors):
        raw = Stream(fd, 'wb', closefd=False)
        raw.name = '<stdout>' if fd == 1 else '<stderr>'
        return io.TextIOWrapper(io.BufferedWriter(raw, 65536), 'utf-8', errors, line_buffering=True)

    def flush():
        for name in ('stdout', 'stderr'):
            for file in (getattr(sys, name, None), getattr(sys, '__%s__' % name, None)):
                try:
                    if file is not None:
                        file.flush()
                except BaseException:
                    pass

    def say(text):
        """Where nothing better works any more."""
        try:
            write(2, text.encode('utf-8', 'backslashreplace'))
        except OSError:
            pass

    sys.stdout = sys.__stdout__ = stream(1, 'surrogateescape')
    sys.stderr = sys.__stderr__ = stream(2, 'backslashreplace')
    # Or what waits here is written twice.
    os.register_at_fork(before=flush)

    # ---- Code -------------------------------------------------------------------------------

    main = types.ModuleType('__main__')
    main.__builtins__ = builtins
    modules['__main__'] = main
    space = main.__dict__
    sys.argv = ['']
    if not sys.path or sys.path[0] != '':
        sys.path.insert(0, '')

    AWAIT = getattr(ast, 'PyCF_ALLOW_TOP_LEVEL_AWAIT', 0)
    COROUTINE = 0x80
    import __future__
    FUTURES = [getattr(__future__, name) for name in __future__.all_feature_names]
    state = {'flags': 0, 'loop': None, 'cell': 0}

    def parts(source, name):
        """The code objects of a cell: its statements, and its last one if that has a value to be shown."""
        flags = state['flags'] | AWAIT
        tree = compile(source, name, 'exec', flags | ast.PyCF_ONLY_AST, True)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if tree.body or last is None:
            code = compile(tree, name, 'exec', flags, True)
            for future in FUTURES:
                if code.co_flags & future.compiler_flag:
                    state['flags'] |= future.compiler_flag
            yield code
        if last is not None:
            yield compile(ast.Interactive([last]), name, 'single', state['flags'] | AWAIT, True)

    def execute(code):
        if not code.co_flags & COROUTINE:
            eval(code, space)
            return
        import asyncio
        loop = state['loop']
        if loop is None or loop.is_closed():
            loop = state['loop'] = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        loop.run_until_complete(eval(code, space))

    def tell(error):
        """Shows an exception as the interpreter does, without this file's frames."""
        trace = error.__traceback__
        while trace is not None and not trace.tb_frame.f_code.co_filename.startswith('<cell '):
            trace = trace.tb_next
        # An interrupt may come while it writes.
        at = trace
        while at is not None:
            while at.tb_next is not None and at.tb_next.tb_frame.f_code.co_filename == '<firn>':
                at.tb_next = at.tb_next.tb_next
            at = at.tb_next
        error.__traceback__ = trace
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
        try:
            flush()
            if sys.excepthook is sys.__excepthook__:
                traceback.print_exception(type(error), error, trace)
            else:
                sys.excepthook(type(error), error, trace)
            flush()
        except BaseException:
            try:
                say(''.join(traceback.format_exception(type(error), error, trace)))
            except BaseException:
                say('%s\n' % type(error).__name__)

    def exit_code(error):
        code = error.code
        if code is None:
            return 0
        if isinstance(code, int):
            return code & 255
        try:
            text = str(code)
        except BaseException:
            text = '?'
        try:
            sys.stderr.write(text + '\n')
        except BaseException:
            say(text + '\n')
        return 1

    def run(source):
        """Outcome and exit code."""
        number = state['cell'] = state['cell'] + 1
        name = CELL % number
        try:
            text = source.decode('utf-8', 'replace')
            linecache.cache[name] = (len(text), None, text.splitlines(True), name)
            linecache.cache.pop(CELL % (number - CELLS), None)
            for code in parts(source, name):
                execute(code)
            return 'ok', 0
        except SystemExit as error:
            return 'exited', exit_code(error)
        except KeyboardInterrupt as error:
            tell(error)
            return 'interrupted', 130
        except BaseException as error:
            tell(error)
            return 'exception', 1

    # ---- Figures ----------------------------------------------------------------------------

    class Figures:
        """Has matplotlib, should the code load it, save what it shows instead of looking for a screen."""
        NAME = 'firn_figures'
        saved = 0

        def find_spec(self, name, path=None, target=None):
            if name != self.NAME:
                return None
            from importlib.machinery import ModuleSpec
            return ModuleSpec(name, self)

        def create_module(self, spec):
            return None

        def exec_module(self, module):
            from matplotlib.backends import backend_agg
            module.FigureCanvas = backend_agg.FigureCanvasAgg
            module.FigureManager = backend_agg.FigureManagerBase
            module.show = self.show

        def show(self, *args, **options):
            pyplot = modules.get('matplotlib.pyplot')
            folder = environ.get('FIRN_ARTIFACTS')
            if pyplot is None or not folder:
                return
            for number in pyplot.get_fignums():
                Figures.saved += 1
                pyplot.figure(number).savefig('%s/figure-%d.png' % (folder, Figures.saved), format='png')
            pyplot.close('all')

    figures = Figures()
    sys.meta_path.append(figures)
    environ.setdefault('MPLBACKEND', 'module://' + Figures.NAME)

    def show_figures():
        pyplot = modules.get('matplotlib.pyplot')
        try:
            if pyplot is not None and pyplot.get_fignums():
                figures.show()
        except BaseException as error:
            tell(error)

    # ---- Orders -----------------------------------------------------------------------------

    buffer = bytearray()

    def more():
        chunk = read(orders, 1 << 18)
        if not chunk:
            leave(70)
        buffer.extend(chunk)

    def order():
        while True:
            end = buffer.find(b'\n')
            if end >= 0:
                break
            more()
        words = bytes(buffer[:end]).split(b' ')
        length = int(words[3])
        while len(buffer) < end + 1 + length:
            more()
        code = bytes(buffer[end + 1:end + 1 + length])
        del buffer[:end + 1 + length]
        return words, code

    def opened(fd, kept):
        try:
            fstat(fd)
        except OSError:
            dup2(kept, fd)

    def take_stdin(path, tag):
        fd = os.open(path, os.O_RDONLY)
        dup2(fd, 0)
        close(fd)
        report(b'begun ' + tag)
        sys.stdin = open(0, closefd=False)

    def report(packet):
        try:
            write(reports, packet)
        except OSError:
            leave(70)

    # An interrupt that comes between two runs is for neither.
    handler = handler_of(SIGINT)
    sigaction(SIGINT, ignored)
    report(b'ready')
    while True:
        words, code = order()
        tag = words[1] + b' ' + words[2]
        artifacts, stdin = words[4].decode(), words[5]
        opened(1, kept_out)
        opened(2, kept_err)
        opened(0, null)
        environ['FIRN_ARTIFACTS'] = artifacts
        Figures.saved = 0
        saved = None
        try:
            if stdin != b'-':
                take_stdin(stdin, tag)
            else:
                sys.stdin = sys.__stdin__
            sigaction(SIGINT, handler)
            outcome, status = run(code)
            show_figures()
        except KeyboardInterrupt:
            outcome, status = 'interrupted', 130
        code = None
        while True:
            try:
                if saved is None:
                    saved = (handler_of(SIGINT),)
                sigaction(SIGINT, ignored)
                break
            except KeyboardInterrupt:
                pass
        handler = saved[0] if saved[0] is not None else signal.default_int_handler
        flush()
        if getpid() != own:
            # A copy of this process, made by the code: the run is its parent's.
            leave(status)
        if stdin != b'-':
            dup2(null, 0)
        report(b'done ' + tag + (' %s %d' % (outcome, status)).encode())


import sys
drive(*map(int, sys.argv[1:6]))
