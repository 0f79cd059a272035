//! The state transitions of an environment (docs/MANIFEST.md, "Life of an environment"). Does no I/O.

use karapace_store::metadata::EnvState;

/// A step that the environment's state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct LifecycleError {
    from: EnvState,
    to: Step,
}

/// The step that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Become(EnvState),
    Rebuild,
}

impl LifecycleError {
    fn text(&self) -> String {
        let next: Vec<String> = successors(self.from).iter().map(EnvState::to_string).collect();
        let Step::Become(to) = self.to else {
            let why = match self.from {
                EnvState::Running => "stop what runs inside first",
                EnvState::Defined => "build it first",
                _ => "its content must not change; build another one with --name",
            };
            return format!("an environment that is {} cannot be rebuilt: {why}", self.from);
        };
        let allowed = match next.as_slice() {
            [] => "it can only be destroyed".to_owned(),
            next => format!("it can become {}", next.join(" or ")),
        };
        format!("an environment that is {} cannot become {}: {allowed}", self.from, to)
    }
}

/// The states that may follow `state`.
pub fn successors(state: EnvState) -> &'static [EnvState] {
    match state {
        EnvState::Defined => &[EnvState::Built],
        EnvState::Built => &[EnvState::Running, EnvState::Frozen],
        EnvState::Running => &[EnvState::Built],
        EnvState::Frozen => &[EnvState::Archived],
        EnvState::Archived => &[],
    }
}

/// Checks one transition.
///
/// # Errors
/// [`LifecycleError`], which names the states that are allowed.
pub fn check(from: EnvState, to: EnvState) -> Result<(), LifecycleError> {
    if successors(from).contains(&to) { Ok(()) } else { Err(LifecycleError { from, to: Step::Become(to) }) }
}

/// Checks that an environment in this state may be replaced by a new one from its manifest.
///
/// # Errors
/// [`LifecycleError`], which says what to do instead.
pub fn check_rebuild(state: EnvState) -> Result<(), LifecycleError> {
    if state == EnvState::Built { Ok(()) } else { Err(LifecycleError { from: state, to: Step::Rebuild }) }
}

/// Whether the view may be written to. In all other states it is served read-only.
pub fn is_writable(state: EnvState) -> bool {
    matches!(state, EnvState::Built | EnvState::Running)
}

/// Whether the environment may be mounted and entered; a frozen one only read-only.
pub fn is_enterable(state: EnvState) -> bool {
    matches!(state, EnvState::Built | EnvState::Running | EnvState::Frozen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use EnvState::{Archived, Built, Defined, Frozen, Running};

    const ALL: [EnvState; 5] = [Defined, Built, Running, Frozen, Archived];

    #[test]
    fn only_listed_transitions_are_allowed() {
        let allowed =
            [(Defined, Built), (Built, Running), (Running, Built), (Built, Frozen), (Frozen, Archived)];
        for from in ALL {
            for to in ALL {
                assert_eq!(check(from, to).is_ok(), allowed.contains(&(from, to)), "{from} -> {to}");
            }
        }
    }

    #[test]
    fn errors_say_what_is_allowed() {
        let table = [
            (Defined, "it can become Built"),
            (Built, "it can become Running or Frozen"),
            (Running, "it can become Built"),
            (Frozen, "it can become Archived"),
            (Archived, "it can only be destroyed"),
        ];
        for (from, allowed) in table {
            for to in ALL.into_iter().filter(|to| !successors(from).contains(to)) {
                let text = check(from, to).unwrap_err().to_string();
                assert_eq!(text, format!("an environment that is {from} cannot become {to}: {allowed}"));
            }
        }
    }

    #[test]
    fn only_what_is_built_is_rebuilt() {
        let table = [
            (Defined, Some("build it first")),
            (Built, None),
            (Running, Some("stop what runs inside first")),
            (Frozen, Some("its content must not change; build another one with --name")),
            (Archived, Some("its content must not change; build another one with --name")),
        ];
        for (state, why) in table {
            let text = check_rebuild(state).err().map(|error| error.to_string());
            let expected = why.map(|why| format!("an environment that is {state} cannot be rebuilt: {why}"));
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn what_a_state_allows() {
        let table = [
            (Defined, false, false),
            (Built, true, true),
            (Running, true, true),
            (Frozen, false, true),
            (Archived, false, false),
        ];
        for (state, writable, enterable) in table {
            assert_eq!((is_writable(state), is_enterable(state)), (writable, enterable), "{state}");
        }
    }
}
