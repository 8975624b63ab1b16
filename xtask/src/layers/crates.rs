//! The modules of the crates, as rustc finds them: from each crate's root along `mod`, tests left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Item, ItemMod, Meta};

use super::paths::{self, Import, Written};
use super::sizes;
use super::syntax::is_test;

/// An index into [`Crates::modules`].
pub(super) type ModuleId = usize;

/// Where a crate begins.
pub(super) struct Root {
    /// The root's file, relative to the workspace.
    pub(super) file: &'static str,
    /// The name by which other crates import it; none of a binary.
    pub(super) name: Option<&'static str>,
}

/// A module: a file, or a part of one.
#[derive(Default)]
pub(super) struct Module {
    /// The file, relative to the workspace.
    pub(super) file: String,
    /// The crate's root.
    pub(super) root: ModuleId,
    /// The module around it; none for a root.
    pub(super) parent: Option<ModuleId>,
    /// The modules in it.
    pub(super) children: BTreeMap<String, ModuleId>,
    /// The names it defines.
    pub(super) items: BTreeSet<String>,
    /// What `use` declares, those within functions included.
    pub(super) imports: Vec<Import>,
    /// Every other path in it, as written.
    pub(super) paths: Vec<Written>,
    /// The lines of its file, tests left out; none of a part of a file.
    pub(super) lines: usize,
}

/// All modules of some crates.
#[derive(Default)]
pub(super) struct Crates {
    /// The modules; a parent stands before its children.
    pub(super) modules: Vec<Module>,
    /// The roots of the crates that others import by name.
    pub(super) names: BTreeMap<&'static str, ModuleId>,
}

impl Crates {
    /// Reads the crates below `workspace`.
    ///
    /// # Errors
    /// A file that cannot be read or parsed, or a `mod` without one.
    pub(super) fn read(workspace: &Path, roots: &[Root]) -> Result<Self> {
        let mut crates = Self::default();
        for root in roots {
            let id = crates.modules.len();
            crates.read_file(workspace, Path::new(root.file), id, None)?;
            if let Some(name) = root.name {
                crates.names.insert(name, id);
            }
        }
        Ok(crates)
    }

    fn read_file(
        &mut self,
        workspace: &Path,
        file: &Path,
        root: ModuleId,
        parent: Option<ModuleId>,
    ) -> Result<ModuleId> {
        let text = std::fs::read_to_string(workspace.join(file))
            .with_context(|| format!("{} cannot be read", file.display()))?;
        let parsed =
            syn::parse_file(&text).with_context(|| format!("{} cannot be parsed", file.display()))?;
        // `a/mod.rs` and a root have their modules beside them, `a.rs` in `a/`.
        let beside = parent.is_none() || file.file_name().is_some_and(|name| name == "mod.rs");
        let folder = if beside {
            file.parent().unwrap_or(Path::new("")).to_owned()
        } else {
            file.with_extension("")
        };
        let id = self.read_items(workspace, file, &folder, &parsed.items, root, parent)?;
        self.modules[id].lines = sizes::without_tests(&text, &parsed);
        Ok(id)
    }

    fn read_items(
        &mut self,
        workspace: &Path,
        file: &Path,
        folder: &Path,
        items: &[Item],
        root: ModuleId,
        parent: Option<ModuleId>,
    ) -> Result<ModuleId> {
        let id = self.modules.len();
        let found = paths::collect(items);
        self.modules.push(Module {
            file: file.to_string_lossy().into_owned(),
            root,
            parent,
            children: BTreeMap::new(),
            items: items.iter().flat_map(defined).collect(),
            imports: found.imports,
            paths: found.paths,
            lines: 0,
        });
        let modules = items.iter().filter_map(|item| match item {
            Item::Mod(module) if !is_test(&module.attrs) => Some(module),
            _ => None,
        });
        for module in modules {
            let name = module.ident.to_string();
            let child = match &module.content {
                Some((_, items)) => {
                    let folder = folder.join(&name);
                    self.read_items(workspace, file, &folder, items, root, Some(id))?
                }
                None => {
                    let child = module_file(workspace, file, folder, module)?;
                    self.read_file(workspace, &child, root, Some(id))?
                }
            };
            self.modules[id].children.insert(name, child);
        }
        Ok(id)
    }
}

/// Where the code of `mod name;` in `file` is.
fn module_file(workspace: &Path, file: &Path, folder: &Path, module: &ItemMod) -> Result<PathBuf> {
    let given = module.attrs.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            syn::Expr::Lit(syn::ExprLit {
                lit: syn::Lit::Str(path),
                ..
            }) => Some(path.value()),
            _ => None,
        },
        _ => None,
    });
    if let Some(given) = given {
        return Ok(file.parent().unwrap_or(Path::new("")).join(given));
    }
    let name = module.ident.to_string();
    let candidates = [
        folder.join(format!("{name}.rs")),
        folder.join(&name).join("mod.rs"),
    ];
    for candidate in candidates {
        if workspace.join(&candidate).is_file() {
            return Ok(candidate);
        }
    }
    bail!("{}: there is no file for `mod {name};`", file.display())
}

/// The names that an item adds to its module.
fn defined(item: &Item) -> Vec<String> {
    let (attributes, name) = match item {
        Item::Const(item) => (&item.attrs, &item.ident),
        Item::Enum(item) => (&item.attrs, &item.ident),
        Item::Fn(item) => (&item.attrs, &item.sig.ident),
        Item::Static(item) => (&item.attrs, &item.ident),
        Item::Struct(item) => (&item.attrs, &item.ident),
        Item::Trait(item) => (&item.attrs, &item.ident),
        Item::TraitAlias(item) => (&item.attrs, &item.ident),
        Item::Type(item) => (&item.attrs, &item.ident),
        Item::Union(item) => (&item.attrs, &item.ident),
        _ => return Vec::new(),
    };
    if is_test(attributes) {
        return Vec::new();
    }
    let mut names = vec![name.to_string()];
    names.extend(attributes.iter().filter_map(custom_resource));
    names
}

/// The kind that `#[derive(CustomResource)]` defines beside its spec: <https://docs.rs/kube/latest/kube/derive.CustomResource.html>.
fn custom_resource(attribute: &Attribute) -> Option<String> {
    if !attribute.path().is_ident("kube") {
        return None;
    }
    let mut kind = None;
    // An argument that this cannot parse ends the parsing; the kind stands before it.
    let _ = attribute.parse_nested_meta(|meta| {
        if meta.input.peek(syn::Token![=]) {
            let value: syn::Expr = meta.value()?.parse()?;
            if meta.path.is_ident("kind")
                && let syn::Expr::Lit(literal) = &value
                && let syn::Lit::Str(text) = &literal.lit
            {
                kind = Some(text.value());
            }
        } else if meta.input.peek(syn::token::Paren) {
            let content;
            syn::parenthesized!(content in meta.input);
            let _: proc_macro2::TokenStream = content.parse()?;
        }
        Ok(())
    });
    kind
}
