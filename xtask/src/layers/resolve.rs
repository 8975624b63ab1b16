//! From a path to the file that defines what it names, through every `use` between.

use std::collections::{BTreeMap, BTreeSet};

use super::crates::{Crates, ModuleId};
use super::paths::Written;

/// Files by what they import: the importer, then the imported, then where.
pub(super) type Imports = BTreeMap<String, BTreeMap<String, Vec<Written>>>;

/// What a name stands for. Both, where a module and something else have one name.
#[derive(Clone, Copy, Default)]
struct Named {
    module: Option<ModuleId>,
    /// A module in whose file it is defined.
    item: Option<ModuleId>,
}

/// The names of the lookup in progress, so that it stops at `use` declarations that form a circle.
type Open = BTreeSet<(ModuleId, String)>;

/// Every import of one file by another.
pub(super) fn imports(crates: &Crates) -> Imports {
    let mut imports = Imports::new();
    for (id, module) in crates.modules.iter().enumerate() {
        // A module in the middle of a path is a name only. One that `use` or an attribute names is imported; a single word elsewhere is
        // a variable that happens to have the name of a module.
        let declared = module.imports.iter().map(|import| (&import.path, true));
        let named = module.paths.iter().map(|path| (path, path.segments.len() > 1));
        for (path, may_be_module) in declared.chain(named) {
            let Some(named) = resolve(crates, id, &path.segments, &mut Open::new()) else {
                continue;
            };
            let target = named.item.or(named.module.filter(|_| may_be_module));
            let Some(file) = target.map(|target| &crates.modules[target].file) else {
                continue;
            };
            if *file != module.file {
                let places = imports.entry(module.file.clone()).or_default();
                places.entry(file.clone()).or_default().push(path.clone());
            }
        }
    }
    imports
}

/// What `segments` name in `module`; nothing where they lead out of the crates.
fn resolve(crates: &Crates, module: ModuleId, segments: &[String], open: &mut Open) -> Option<Named> {
    let (first, mut rest) = segments.split_first()?;
    let mut named = match first.as_str() {
        "crate" => in_module(crates.modules[module].root),
        "self" => in_module(module),
        "super" => in_module(crates.modules[module].parent?),
        "Self" => return None,
        "" => {
            let (name, after) = rest.split_first()?;
            rest = after;
            in_module(*crates.names.get(name.as_str())?)
        }
        name => match look_up(crates, module, name, open) {
            Named {
                module: None,
                item: None,
            } => in_module(*crates.names.get(name)?),
            named => named,
        },
    };
    for segment in rest {
        named = match (named.module, segment.as_str()) {
            (Some(module), "super") => in_module(crates.modules[module].parent?),
            (Some(module), name) => match look_up(crates, module, name, open) {
                // Defined by a macro: it counts as an item of the module.
                Named {
                    module: None,
                    item: None,
                } if named.item.is_none() => Named {
                    module: None,
                    item: Some(module),
                },
                Named {
                    module: None,
                    item: None,
                } => named,
                found => found,
            },
            // What belongs to a type is where the type is.
            (None, _) => break,
        };
    }
    Some(named)
}

fn in_module(module: ModuleId) -> Named {
    Named {
        module: Some(module),
        item: None,
    }
}

/// What `name` stands for in `module`.
fn look_up(crates: &Crates, module: ModuleId, name: &str, open: &mut Open) -> Named {
    let key = (module, name.to_owned());
    if !open.insert(key.clone()) {
        return Named::default();
    }
    let here = &crates.modules[module];
    let mut named = Named {
        module: here.children.get(name).copied(),
        item: here.items.contains(name).then_some(module),
    };
    let declared = here
        .imports
        .iter()
        .filter(|import| import.name.as_deref() == Some(name));
    for import in declared {
        if let Some(found) = resolve(crates, module, &import.path.segments, open) {
            named.module = named.module.or(found.module);
            named.item = named.item.or(found.item);
        }
    }
    if named.module.is_none() && named.item.is_none() {
        for import in here.imports.iter().filter(|import| import.name.is_none()) {
            let all = resolve(crates, module, &import.path.segments, open);
            if let Some(of) = all.and_then(|all| all.module) {
                let found = look_up(crates, of, name, open);
                named.module = named.module.or(found.module);
                named.item = named.item.or(found.item);
            }
        }
    }
    open.remove(&key);
    named
}
