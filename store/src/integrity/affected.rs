//! Who needs what is damaged: a walk over each snapshot by itself, done only when something is damaged.

use std::collections::HashMap;
use std::rc::Rc;

use super::finding::Finding;
use super::{Check, UpperState};
use crate::content::FileContent;
use crate::error::Result;
use crate::id::ObjectId;
use crate::layer::LayerRecord;
use crate::metadata::Metadata;
use crate::reach::{Fault, Met, Reach, Watch};

impl Check<'_> {
    /// Fills in the environments, snapshots and paths of what was found wrong with objects.
    pub(super) fn name_affected(
        &mut self,
        environments: &[Metadata],
        uppers: &HashMap<String, UpperState>,
    ) -> Result<()> {
        if self.by_object.is_empty() {
            return Ok(());
        }
        for env in environments {
            let standing = [("base", env.base_record), ("head", env.head_record)];
            let mut layers: Vec<_> = standing.map(|(name, id)| (name.to_owned(), id)).to_vec();
            layers.extend(env.snapshots.iter().map(|s| {
                let hash = || format!("{:.12}", s.hash.to_string());
                (s.name.clone().unwrap_or_else(hash), s.record)
            }));
            for (name, record) in layers {
                let Ok(record) = LayerRecord::read(self.store, &record) else { continue };
                let mut reach = Reach::new(self.shared.clone());
                reach.root(record.tree, &Rc::from(env.name.as_str()));
                record.object_refs.iter().for_each(|id| reach.object(*id, &Rc::from(env.name.as_str())));
                self.name_reached(reach, &env.name, &format!("{}@{name}", env.name))?;
            }
            if let Some(upper) = uppers.get(&env.name) {
                let mut reach = Reach::new(self.shared.clone());
                upper.start(&mut reach, &Rc::from(env.name.as_str()));
                self.name_reached(reach, &env.name, &env.name)?;
            }
        }
        Ok(())
    }

    fn name_reached(&mut self, reach: Reach, env: &str, label: &str) -> Result<()> {
        let (by_object, findings) = (&self.by_object, &mut self.findings);
        let mut name = Name { by_object, findings, env, label };
        let reached = reach.run(&mut name)?;
        // Roots and trees whose bytes are wrong are met without a word when they are not opened twice.
        for id in by_object.keys().filter(|id| reached.contains(*id)) {
            name.note(id, None);
        }
        Ok(())
    }
}

/// Notes in the findings what a walk meets.
struct Name<'a> {
    by_object: &'a HashMap<ObjectId, Vec<usize>>,
    findings: &'a mut Vec<Finding>,
    env: &'a str,
    label: &'a str,
}

impl Name<'_> {
    fn note(&mut self, id: &ObjectId, by: Option<&Met>) {
        for index in self.by_object.get(id).into_iter().flatten() {
            let finding = &mut self.findings[*index];
            finding.path = finding.path.take().or_else(|| by.and_then(Met::path));
            if !finding.environments.iter().any(|name| name == self.env) {
                finding.environments.push(self.env.to_owned());
            }
            if !finding.affected.iter().any(|label| label == self.label) {
                finding.affected.push(self.label.to_owned());
            }
        }
    }
}

impl Watch for Name<'_> {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        self.note(&fault.id, Some(&fault.by));
        Ok(())
    }

    fn object(&mut self, id: &ObjectId, by: &dyn Fn() -> Met) -> Result<()> {
        if self.by_object.contains_key(id) {
            self.note(id, Some(&by()));
        }
        Ok(())
    }

    fn file(&mut self, content: &FileContent, by: &dyn Fn() -> Met) -> Result<()> {
        self.object(&content.hash, by)
    }
}
