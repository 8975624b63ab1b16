//! What the other files read of attributes and literals.

use syn::{Attribute, LitStr, Meta};

/// Whether an item exists only in tests.
pub(super) fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return attribute.path().is_ident("test");
        };
        let mut tokens = list.tokens.clone().into_iter();
        match tokens.next() {
            Some(proc_macro2::TokenTree::Ident(first)) if list.path.is_ident("cfg") => {
                let all = first == "all" && tokens.any(|token| token.to_string().contains("test"));
                first == "test" || all
            }
            _ => false,
        }
    })
}

/// A literal that may be a path, such as serde's `with = "module"`.
pub(super) fn path_in(literal: &proc_macro2::Literal) -> Option<Vec<String>> {
    let text: LitStr = syn::parse_str(&literal.to_string()).ok()?;
    let path: syn::Path = text.parse().ok()?;
    let segments = path.segments.iter().map(|segment| segment.ident.to_string());
    Some(segments.collect())
}
