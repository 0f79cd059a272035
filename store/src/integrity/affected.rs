//! Determines what needs the damaged objects: one walk over everything, done only if something is damaged,
//! and from there upwards.

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::finding::Finding;
use super::{Check, UpperState};
use crate::content::FileContent;
use crate::error::Result;
use crate::id::ObjectId;
use crate::layer::LayerRecord;
use crate::metadata::Metadata;
use crate::reach::{Fault, Met, Part, Reach, Watch};

/// A layer or upper, which needs everything reachable from `ids`.
struct Start {
    env: String,
    /// The text for [`Finding::affected`].
    label: String,
    ids: Vec<ObjectId>,
}

impl Check<'_> {
    /// Adds the affected environments, snapshots and paths to the findings about objects.
    pub(super) fn name_affected(
        &mut self,
        environments: &[Metadata],
        uppers: &HashMap<String, UpperState>,
    ) -> Result<()> {
        if self.by_object.is_empty() {
            return Ok(());
        }
        let mut reach = Reach::new(self.shared.clone());
        let mut starts = Vec::new();
        for env in environments {
            starts.extend(self.layers_of(env, &mut reach));
            if let Some(upper) = uppers.get(&env.name) {
                upper.start(&mut reach, &Rc::from(env.name.as_str()));
                let roots = &upper.roots;
                let ids = [&roots.roots[..], &roots.trees, &roots.objects].concat();
                starts.push(Start { env: env.name.clone(), label: env.name.clone(), ids });
            }
        }
        let (by_object, findings) = (&self.by_object, &mut self.findings);
        let mut name = Name { by_object, findings, parents: HashMap::new() };
        reach.run(&mut name)?;
        let parents = name.parents;
        for (id, found) in by_object {
            let above = above(id, &parents);
            for start in starts.iter().filter(|start| start.ids.iter().any(|id| above.contains(id))) {
                for index in found {
                    note(&mut self.findings[*index], start);
                }
            }
        }
        Ok(())
    }

    /// The base, head and snapshots of an environment, as far as their records can be read.
    fn layers_of(&self, env: &Metadata, reach: &mut Reach) -> Vec<Start> {
        let standing = [("base", env.base_record), ("head", env.head_record)];
        let mut layers: Vec<_> = standing.map(|(name, id)| (name.to_owned(), id)).to_vec();
        layers.extend(env.snapshots.iter().map(|s| {
            let hash = || format!("{:.12}", s.hash.to_string());
            (s.name.clone().unwrap_or_else(hash), s.record)
        }));
        let by = Rc::from(env.name.as_str());
        let mut starts = Vec::new();
        for (name, record) in layers {
            let Ok(record) = LayerRecord::read(self.store, &record) else { continue };
            reach.root(record.tree, &by);
            record.object_refs.iter().for_each(|id| reach.object(*id, &by));
            let ids = [&[record.tree], &record.object_refs[..]].concat();
            starts.push(Start { env: env.name.clone(), label: format!("{}@{name}", env.name), ids });
        }
        starts
    }
}

/// An object and everything that contains it.
fn above(id: &ObjectId, parents: &HashMap<ObjectId, Vec<ObjectId>>) -> HashSet<ObjectId> {
    let (mut above, mut todo) = (HashSet::from([*id]), vec![*id]);
    while let Some(id) = todo.pop() {
        for parent in parents.get(&id).into_iter().flatten() {
            if above.insert(*parent) {
                todo.push(*parent);
            }
        }
    }
    above
}

fn note(finding: &mut Finding, start: &Start) {
    if !finding.environments.contains(&start.env) {
        finding.environments.push(start.env.clone());
    }
    if !finding.affected.contains(&start.label) {
        finding.affected.push(start.label.clone());
    }
}

/// Adds paths to the findings, and records what contains what.
struct Name<'a> {
    by_object: &'a HashMap<ObjectId, Vec<usize>>,
    findings: &'a mut Vec<Finding>,
    /// The parents of each part: of all listings, and of damaged contents.
    parents: HashMap<ObjectId, Vec<ObjectId>>,
}

impl Name<'_> {
    fn place(&mut self, id: &ObjectId, by: &dyn Fn() -> Met) {
        for index in self.by_object.get(id).into_iter().flatten() {
            let finding = &mut self.findings[*index];
            finding.path = finding.path.take().or_else(|| by().path());
        }
    }
}

impl Watch for Name<'_> {
    fn fault(&mut self, fault: Fault) -> Result<()> {
        self.place(&fault.id, &|| fault.by.clone());
        Ok(())
    }

    fn object(&mut self, id: &ObjectId, by: &dyn Fn() -> Met) -> Result<()> {
        self.place(id, by);
        Ok(())
    }

    fn file(&mut self, content: &FileContent, by: &dyn Fn() -> Met) -> Result<()> {
        self.place(&content.hash, by);
        Ok(())
    }

    fn part(&mut self, parent: &ObjectId, part: Part<'_>) {
        let id = match part {
            Part::Listing(id) => id,
            Part::Content(id) if self.by_object.contains_key(id) => id,
            Part::Content(_) => return,
        };
        self.parents.entry(*id).or_default().push(*parent);
    }
}
