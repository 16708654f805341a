//! The grades of sandboxes, and tests of one body that run over both.

/// What a sandbox is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grade {
    /// Namespaces of the host's kernel.
    Jail,
    /// A microVM: what `firn run` gives to who names nothing.
    #[default]
    Vm,
}

impl Grade {
    /// As it is written on the command line and in results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Grade::Jail => "jail",
            Grade::Vm => "vm",
        }
    }
}

/// Makes the tests `NAME::jail` and `NAME::vm` of a function that takes a [`Grade`].
///
/// Stands before the function, where an attribute would stand. It takes the name and not the body,
/// so that rustfmt sees the body; a function whose line is forgotten is dead code, which the lint
/// tells.
#[macro_export]
macro_rules! both_grades {
    ($(#[$attribute:meta])* $name:ident) => {
        mod $name {
            $crate::at_grade!($(#[$attribute])* jail $name(Jail));
            $crate::at_grade!($(#[$attribute])* vm $name(Vm));
        }
    };
}

/// Makes the test `NAME::jail` of a function, for what only a jail has.
#[macro_export]
macro_rules! jail_only {
    ($(#[$attribute:meta])* $name:ident) => {
        mod $name {
            $crate::at_grade!($(#[$attribute])* jail $name());
        }
    };
}

/// Makes the test `NAME::vm` of a function, for what only a microVM has.
#[macro_export]
macro_rules! vm_only {
    ($(#[$attribute:meta])* $name:ident) => {
        mod $name {
            $crate::at_grade!($(#[$attribute])* vm $name());
        }
    };
}

/// One test. For the macros above.
#[doc(hidden)]
#[macro_export]
macro_rules! at_grade {
    ($(#[$attribute:meta])* $test:ident $name:ident($($grade:ident)?)) => {
        #[test]
        $(#[$attribute])*
        fn $test() {
            super::$name($($crate::Grade::$grade)?);
        }
    };
}
