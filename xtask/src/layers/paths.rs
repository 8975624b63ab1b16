//! Every path that a module names: in `use`, in expressions, types and patterns, in attributes, and in the tokens of macros.

use proc_macro2::{Spacing, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, ItemMod, ItemUse, Meta, UseTree, VisRestricted};

use super::syntax::{is_test, path_in};

/// A path as written. The first segment of one that begins with `::` is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The segments, without generic arguments.
    pub(super) segments: Vec<String>,
    /// The line, from 1.
    pub(super) line: usize,
}

/// One name that a `use` declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// The name it has here; none for `*`.
    pub(super) name: Option<String>,
    /// The path, without `*`.
    pub(super) path: Written,
}

/// What a module names.
#[derive(Default)]
pub(super) struct Found {
    /// Declared by `use`.
    pub(super) imports: Vec<Import>,
    /// Named elsewhere.
    pub(super) paths: Vec<Written>,
}

impl Written {
    /// The path as in the source.
    pub(super) fn text(&self) -> String {
        self.segments.join("::")
    }
}

/// All paths in `items`, without those of modules in them.
pub(super) fn collect(items: &[Item]) -> Found {
    let mut found = Found::default();
    items.iter().for_each(|item| found.visit_item(item));
    found
}

impl Found {
    fn add_use(&mut self, prefix: &[String], tree: &UseTree) {
        let join = |ident: &syn::Ident| {
            let mut segments = prefix.to_vec();
            // `use a::{self}` names `a`.
            if ident != "self" || prefix.is_empty() {
                segments.push(ident.to_string());
            }
            segments
        };
        let path = |segments: Vec<String>, span: proc_macro2::Span| Written {
            segments,
            line: span.start().line,
        };
        match tree {
            UseTree::Path(tree) => self.add_use(&join(&tree.ident), &tree.tree),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_use(prefix, tree)),
            UseTree::Name(tree) => {
                let path = path(join(&tree.ident), tree.ident.span());
                let name = path.segments.last().cloned();
                self.imports.push(Import { name, path });
            }
            UseTree::Rename(tree) => self.imports.push(Import {
                name: Some(tree.rename.to_string()),
                path: path(join(&tree.ident), tree.ident.span()),
            }),
            UseTree::Glob(tree) => self.imports.push(Import {
                name: None,
                path: path(prefix.to_vec(), tree.star_token.spans[0]),
            }),
        }
    }

    /// Paths of two segments and more: which of the single words of a macro are paths cannot be known, and one that comes from
    /// elsewhere is declared by a `use` too.
    fn add_tokens(&mut self, tokens: &TokenStream) {
        let mut path: Option<Written> = None;
        let mut colons = 0;
        for token in tokens.clone() {
            match &token {
                TokenTree::Ident(ident) if colons == 2 && path.is_some() => {
                    path.iter_mut()
                        .for_each(|path| path.segments.push(ident.to_string()));
                    colons = 0;
                    continue;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => {
                    colons = if colons == 1 || punct.spacing() == Spacing::Joint {
                        colons + 1
                    } else {
                        0
                    };
                    if colons > 0 {
                        continue;
                    }
                }
                _ => {}
            }
            self.paths
                .extend(path.take().filter(|path| path.segments.len() > 1));
            colons = 0;
            match token {
                TokenTree::Ident(ident) => {
                    let line = ident.span().start().line;
                    let segments = vec![ident.to_string()];
                    path = Some(Written { segments, line });
                }
                TokenTree::Group(group) => self.add_tokens(&group.stream()),
                TokenTree::Literal(literal) => {
                    let line = literal.span().start().line;
                    self.paths.extend(
                        path_in(&literal)
                            .filter(|segments| segments.len() > 1)
                            .map(|segments| Written { segments, line }),
                    );
                }
                TokenTree::Punct(_) => {}
            }
        }
        self.paths
            .extend(path.take().filter(|path| path.segments.len() > 1));
    }
}

impl<'ast> Visit<'ast> for Found {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Const(item) => &item.attrs,
            Item::Enum(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => &item.attrs,
            Item::Macro(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Struct(item) => &item.attrs,
            Item::Trait(item) => &item.attrs,
            Item::Type(item) => &item.attrs,
            Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => return visit::visit_impl_item(self, item),
        };
        if !is_test(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    /// Modules are collected on their own.
    fn visit_item_mod(&mut self, _: &'ast ItemMod) {}

    /// `pub(in path)` uses nothing of what it names.
    fn visit_vis_restricted(&mut self, _: &'ast VisRestricted) {}

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let extern_prefix = item.leading_colon.map(|_| String::new());
        let prefix: Vec<_> = extern_prefix.into_iter().collect();
        self.add_use(&prefix, &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let extern_prefix = path.leading_colon.map(|_| String::new());
        let names = path.segments.iter().map(|segment| segment.ident.to_string());
        let line = path
            .segments
            .first()
            .map_or(0, |first| first.ident.span().start().line);
        self.paths.push(Written {
            segments: extern_prefix.into_iter().chain(names).collect(),
            line,
        });
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        visit::visit_macro(self, call);
        self.add_tokens(&call.tokens);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::List(list) = &attribute.meta {
            self.add_tokens(&list.tokens);
        }
    }
}
