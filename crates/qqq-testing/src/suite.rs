//! A test harness in place of libtest's, which cannot say at run time that a test was not run.

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{Missing, in_ci};

/// The tests of a file with `harness = false` in its crate's manifest, whose `main` returns [`run`](Self::run).
///
/// It takes libtest's arguments and prints what libtest prints. A test whose need is not met is reported as ignored, with
/// the reason; or it fails, where the need [must be met](Missing::is_failure). What tests print is not held back.
#[derive(Default)]
#[must_use = "nothing runs before `run`"]
pub struct Suite {
    trials: Vec<Trial>,
}

/// A test's name and itself; [`tests!`](crate::tests) makes lists of them.
pub type Test<F> = (&'static str, F);

impl Suite {
    /// A suite without tests, to which they are added.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds tests that need nothing.
    pub fn tests(mut self, tests: &[Test<fn()>]) -> Self {
        self.trials.extend(tests.iter().map(|&(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
        }));
        self
    }

    /// Adds tests that need something, which they are given; each asks for it when it runs.
    pub fn with<T: 'static>(
        self,
        need: impl Fn() -> Result<T, Missing> + Send + Sync + 'static,
        tests: &[Test<fn(T)>],
    ) -> Self {
        self.on("", need, tests)
    }

    /// The same under a heading, which is printed before their names: what they run on.
    pub fn on<T: 'static>(
        mut self,
        heading: &str,
        need: impl Fn() -> Result<T, Missing> + Send + Sync + 'static,
        tests: &[Test<fn(T)>],
    ) -> Self {
        let need = Arc::new(need);
        self.trials.extend(tests.iter().map(|&(name, test)| {
            let need = need.clone();
            Trial::ignorable_test(name, move || outcome(need(), test, in_ci())).with_kind(heading)
        }));
        self
    }

    /// Runs what the arguments of the process ask for.
    pub fn run(self) -> ExitCode {
        libtest_mimic::run(&Arguments::from_args(), self.trials).exit_code()
    }

    /// As [`run`](Self::run), one test after the other unless the arguments say how many at a time: for tests that share what
    /// they need.
    pub fn run_in_turn(self) -> ExitCode {
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(1);
        libtest_mimic::run(&arguments, self.trials).exit_code()
    }
}

fn outcome<T>(need: Result<T, Missing>, test: fn(T), in_ci: bool) -> Result<Completion, Failed> {
    match need {
        Ok(what) => {
            test(what);
            Ok(Completion::Completed)
        }
        Err(missing) if missing.is_failure(in_ci) => Err(missing.reason().into()),
        Err(missing) => Ok(Completion::ignored_with(missing.reason())),
    }
}

/// A list of test functions with their names, for a [`Suite`].
#[macro_export]
macro_rules! tests {
    ($($test:path),* $(,)?) => {
        &[$((stringify!($test), $test as _)),*]
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_without_its_need_does_not_pass() {
        let runs = |need, in_ci| outcome(need, |_: u32| (), in_ci);
        let missing = || Missing::Obtainable(String::from("no model"));
        assert!(matches!(runs(Ok(1), true), Ok(Completion::Completed)));
        assert!(matches!(
            runs(Err(missing()), false),
            Ok(Completion::Ignored { reason: Some(r) }) if r == "no model"
        ));
        assert_eq!(runs(Err(missing()), true).err().unwrap().message(), Some("no model"));
    }

    fn one() {}

    #[test]
    fn names_are_those_of_the_functions() {
        let tests: &[Test<fn()>] = tests![one, self::one];
        assert_eq!(tests.iter().map(|t| t.0).collect::<Vec<_>>(), ["one", "self::one"]);
        let suite = Suite::new().tests(tests).on("avx2", || Ok(()), &[("two", |()| ())]);
        let names: Vec<_> = suite.trials.iter().map(|t| (t.kind(), t.name())).collect();
        assert_eq!(names, [("", "one"), ("", "self::one"), ("avx2", "two")]);
    }
}
