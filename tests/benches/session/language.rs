//! The interpreters that are compared, and what is run in them.

/// See the module.
#[derive(Debug)]
pub(crate) struct Language {
    /// Its environment.
    pub(crate) name: &'static str,
    /// Reads code line by line, runs it, and writes a NUL after each.
    pub(crate) bare: &'static [&'static str],
    /// Does next to nothing and ends.
    pub(crate) once: &'static [&'static str],
    /// Prints a digit.
    pub(crate) print: &'static str,
    /// Prints [`MEGABYTE`] bytes.
    pub(crate) print_much: &'static str,
}

/// How much is printed at once: the text, and a newline.
pub(crate) const MEGABYTE: usize = 1_000_001;

pub(crate) const ALL: [Language; 3] = [
    Language {
        name: "python",
        bare: &[
            "/usr/bin/python3",
            "-c",
            "import sys\n\
             space = {}\n\
             for line in iter(sys.stdin.buffer.readline, b''):\n\
             \x20   exec(compile(line, '<line>', 'exec'), space)\n\
             \x20   sys.stdout.write('\\0')\n\
             \x20   sys.stdout.flush()\n",
        ],
        once: &["/usr/bin/python3", "-c", "1"],
        print: "print(1)",
        print_much: "print('x' * 1000000)",
    },
    Language {
        name: "shell",
        bare: &["/bin/bash", "-c", "while IFS= read -r line; do eval \"$line\"; printf '\\0'; done"],
        once: &["/bin/bash", "-c", "true"],
        print: "echo 1",
        print_much: "printf '%01000000d\\n' 0",
    },
    Language {
        name: "node",
        bare: &[
            "/usr/bin/node",
            "-e",
            "process.stdin.on('data', (line) => {\n\
             \x20 (0, eval)(line.toString());\n\
             \x20 process.stdout.write('\\0');\n\
             });",
        ],
        once: &["/usr/bin/node", "-e", "1"],
        print: "console.log(1)",
        print_much: "console.log('x'.repeat(1000000))",
    },
];
