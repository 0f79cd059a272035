//! What may follow what in an environment's life (SPEC §8). Pure.

use karapace_store::metadata::EnvState;

/// A step that the environment's state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct LifecycleError {
    from: EnvState,
    to: EnvState,
}

impl LifecycleError {
    fn text(&self) -> String {
        let next: Vec<String> = successors(self.from).iter().map(EnvState::to_string).collect();
        let allowed = match next.as_slice() {
            [] => "nothing follows it; it can be destroyed".to_owned(),
            next => format!("it can become {}", next.join(" or ")),
        };
        format!("an environment that is {} cannot become {}: {allowed}", self.from, self.to)
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

/// Checks one step.
///
/// # Errors
/// The error names the states that are allowed.
pub fn check(from: EnvState, to: EnvState) -> Result<(), LifecycleError> {
    if successors(from).contains(&to) { Ok(()) } else { Err(LifecycleError { from, to }) }
}

/// Whether the view may be written: everything else is served read-only.
pub fn is_writable(state: EnvState) -> bool {
    matches!(state, EnvState::Built | EnvState::Running)
}

/// Whether it may be mounted and entered at all. A frozen environment may, read-only.
pub fn is_enterable(state: EnvState) -> bool {
    matches!(state, EnvState::Built | EnvState::Running | EnvState::Frozen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use EnvState::{Archived, Built, Defined, Frozen, Running};

    const ALL: [EnvState; 5] = [Defined, Built, Running, Frozen, Archived];

    #[test]
    fn only_these_steps() {
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
        let text = check(Built, Archived).unwrap_err().to_string();
        assert_eq!(
            text,
            "an environment that is Built cannot become Archived: it can become Running or Frozen"
        );
        let text = check(Archived, Built).unwrap_err().to_string();
        assert!(text.ends_with("nothing follows it; it can be destroyed"), "{text}");
    }

    #[test]
    fn what_a_state_permits() {
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
