//! What an environment's sessions see of the host, from its record.

use std::path::Path;

use karapace_store::metadata::Metadata;

use crate::description::manifest::Manifest;
use crate::engine::{Engine, Result, default_store};
use crate::private_dir;
use crate::runtime::{Caller, Choices, Policy};

/// The policy for a session in `env` that this process starts.
pub(super) fn of(env: &Metadata, choices: &Choices) -> Result<Policy> {
    let manifest = Manifest::parse(&env.manifest, Path::new("the manifest in the environment's record"))?;
    let instance = env.instance.to_hex();
    let caller = Caller {
        instance: &instance,
        manifest_dir: env.manifest_dir.as_deref().map(Path::new),
        variable: &|name| std::env::var_os(name),
    };
    Ok(Policy::new(&manifest, choices, &caller)?)
}

/// The same policy, with karapace's own directories excluded from the shares, as far as they exist now.
pub(super) fn without_our_own(engine: &Engine, policy: &Policy) -> Result<Policy> {
    let own = [Some(engine.root().to_owned()), default_store(), private_dir::for_sessions()];
    let mut policy = policy.clone();
    policy.keep_out(&own.into_iter().flatten().collect::<Vec<_>>())?;
    Ok(policy)
}
