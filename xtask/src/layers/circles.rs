//! Circles of files that import one another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::resolve::Imports;

/// Files that all import one another, directly or through others of them.
pub(super) type Circle = BTreeSet<String>;

/// The strongly connected components of two files and more.
pub(super) fn find(imports: &Imports) -> BTreeSet<Circle> {
    let mut search = Search {
        imports,
        number: BTreeMap::new(),
        low: BTreeMap::new(),
        stack: Vec::new(),
        found: BTreeSet::new(),
    };
    for file in imports.keys() {
        if !search.number.contains_key(file.as_str()) {
            search.visit(file);
        }
    }
    search.found
}

/// Tarjan's search. The recursion is as deep as the longest chain of imports.
struct Search<'i> {
    imports: &'i Imports,
    number: BTreeMap<&'i str, usize>,
    low: BTreeMap<&'i str, usize>,
    stack: Vec<&'i str>,
    found: BTreeSet<Circle>,
}

impl<'i> Search<'i> {
    fn visit(&mut self, file: &'i str) -> usize {
        let number = self.number.len();
        self.number.insert(file, number);
        self.stack.push(file);
        let mut low = number;
        for target in self.imports.get(file).into_iter().flat_map(BTreeMap::keys) {
            match self.number.get(target.as_str()) {
                None => low = low.min(self.visit(target)),
                Some(number) if self.stack.contains(&target.as_str()) => low = low.min(*number),
                Some(_) => {}
            }
        }
        self.low.insert(file, low);
        if low == number
            && let Some(begin) = self.stack.iter().position(|other| *other == file)
        {
            let circle: Circle = self.stack.drain(begin..).map(str::to_owned).collect();
            if circle.len() > 1 {
                self.found.insert(circle);
            }
        }
        low
    }
}

/// The shortest way from `from` to `to` along imports, both included; none where there is none.
pub(super) fn way<'i>(imports: &'i Imports, from: &'i str, to: &str) -> Option<Vec<&'i str>> {
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(file) = queue.pop_front() {
        if file == to {
            let mut way = vec![file];
            while let Some(before) = came_from.get(way[way.len() - 1]) {
                way.push(before);
            }
            way.reverse();
            return Some(way);
        }
        for target in imports.get(file).into_iter().flat_map(BTreeMap::keys) {
            if target != from && !came_from.contains_key(target.as_str()) {
                came_from.insert(target, file);
                queue.push_back(target);
            }
        }
    }
    None
}
