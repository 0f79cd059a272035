//! Random changes, commits and restores of chosen paths, compared with maps of names and contents.

use std::collections::HashSet;

use super::paths::{Files, commit_paths, diff, files, put, rename, restore_paths, sound, unlink};
use super::*;

/// A deterministic generator of pseudo-random numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % sides
    }
}

/// The head's files after a commit of one chosen path of `view`.
fn chosen_of(head: &Files, view: &Files, path: &str) -> Files {
    let below = |p: &str| p == path || p.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'));
    let mut result: Files =
        head.iter().filter(|(p, _)| !below(p)).map(|(p, c)| (p.clone(), c.clone())).collect();
    result.extend(view.iter().filter(|(p, _)| below(p)).map(|(p, c)| (p.clone(), c.clone())));
    if view.contains_key(path) {
        for (at, _) in path.match_indices('/').skip(1) {
            result.insert(path[..at].to_owned(), None);
        }
    }
    result
}

#[test]
fn random_choices_give_what_was_chosen() {
    for seed in 0..3 {
        let place = Place::new();
        let env = place.import("dev");
        let mut instance = place.open(&env);
        let mut dice = Dice(seed);
        let mut view = files(instance.view());
        let mut head = view.clone();
        let mut snapshots = vec![("base".to_owned(), head.clone())];
        for step in 0..60 {
            let dir = ["/a", "/b", "/c"][dice.roll(3)];
            let file = format!("{dir}/{}", dice.roll(2));
            let path = if dice.roll(2) == 0 { dir.to_owned() } else { file.clone() };
            match dice.roll(9) {
                0..3 => {
                    put(instance.view(), &file, &format!("{step}"));
                }
                3 if view.contains_key(&file) => unlink(instance.view(), &file),
                4 if view.contains_key(dir) => {
                    rename(instance.view(), dir, ["/a", "/b", "/c"][dice.roll(3)]);
                }
                5 if view.contains_key(&path) || head.contains_key(&path) => {
                    let outcome = commit_paths(&instance, &[&path]);
                    head = chosen_of(&head, &view, &path);
                    if outcome.created {
                        snapshots.push((outcome.hash.to_hex(), head.clone()));
                    }
                }
                6 => {
                    let (hash, there) = snapshots[dice.roll(snapshots.len())].clone();
                    if there.contains_key(&path) || view.contains_key(&path) {
                        let saved = restore_paths(&instance, &hash, &[&path]).saved;
                        if let Some(saved) = saved {
                            head = chosen_of(&head, &view, &path);
                            snapshots.push((saved.to_hex(), head.clone()));
                        }
                        view = chosen_of(&view, &there, &path);
                        assert_eq!(files(instance.view()), view, "seed {seed} step {step}");
                    }
                }
                7 => {
                    let (hash, there) = snapshots[dice.roll(snapshots.len())].clone();
                    if let Some(saved) = instance.restore(&hash, &[], None, Wait::Long).unwrap().saved {
                        snapshots.push((saved.to_hex(), view.clone()));
                    }
                    head = there;
                    assert_eq!(files(instance.view()), head, "seed {seed} step {step}");
                }
                8 => {
                    instance.close().unwrap();
                    drop(instance);
                    instance = place.open(&env);
                    assert_eq!(files(instance.view()), view, "seed {seed} step {step}");
                }
                _ => {}
            }
            view = files(instance.view());
            let all: HashSet<&String> = view.keys().chain(head.keys()).collect();
            let differ: HashSet<&String> = all.into_iter().filter(|p| view.get(*p) != head.get(*p)).collect();
            let listed: HashSet<String> = diff(&instance).iter().map(|line| line[2..].to_owned()).collect();
            for path in differ {
                assert!(listed.contains(path), "seed {seed} step {step}: {path} is not in {listed:?}");
            }
        }
        sound(&place, &instance);
        gc::collect(&place.engine, false, &Silent).unwrap();
        for (hash, there) in &snapshots {
            instance.restore(hash, &[], None, Wait::Long).unwrap();
            assert_eq!(&files(instance.view()), there, "seed {seed}: {hash}");
        }
        sound(&place, &instance);
    }
}
