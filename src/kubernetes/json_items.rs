//! Pure: splits the JSON of a list into its items while it arrives, so that a page is never in memory as a whole, and an item costs at most
//! its limit. Each item is decoded by itself: one that cannot be decoded, or is too large, is no obstacle to the others.

/// Capacity that is kept from item to item, in bytes.
const KEPT_CAPACITY: usize = 64 << 10;

/// The text is no JSON of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// What was complete, with its JSON in [`ItemSplitter::text`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The list's own metadata.
    Metadata,
    /// An item.
    Item,
    /// An item beyond the limit. There is no text of it.
    TooLarge,
}

/// The state between two chunks of the JSON.
#[derive(Debug)]
pub(super) struct ItemSplitter {
    limit: usize,
    /// How many braces and brackets are open.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// The last string directly in the list: where a value begins, its key.
    key: Vec<u8>,
    /// Whether the array `items` is open.
    in_items: bool,
    /// The part that is open, and the depth at which it ends.
    open: Option<(Part, usize)>,
    text: Vec<u8>,
    is_taken: bool,
    has_ended: bool,
}

impl ItemSplitter {
    /// Splits into items of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            depth: 0,
            in_string: false,
            escaped: false,
            key: Vec::new(),
            in_items: false,
            open: None,
            text: Vec::new(),
            is_taken: false,
            has_ended: false,
        }
    }

    /// The JSON of the part that was complete last.
    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Whether the list is complete.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Bytes of the part that is incomplete.
    pub(super) fn pending(&self) -> usize {
        match self.is_taken {
            true => 0,
            false => self.text.len(),
        }
    }

    /// Reads `chunk` up to the end of a part. Returns how many bytes it read and the part, if there is one.
    ///
    /// # Errors
    /// The text is no JSON of a list.
    pub(super) fn feed(&mut self, chunk: &[u8]) -> Result<(usize, Option<Part>), Malformed> {
        if std::mem::take(&mut self.is_taken) {
            self.text.clear();
            self.text.shrink_to(KEPT_CAPACITY);
        }
        let mut from = 0;
        for (at, &byte) in chunk.iter().enumerate() {
            if self.in_string {
                self.in_string_byte(byte);
                continue;
            }
            match byte {
                b'"' if self.depth > 0 => {
                    self.in_string = true;
                    if self.depth == 1 {
                        self.key.clear();
                    }
                }
                b'{' | b'[' => {
                    if self.has_ended {
                        return Err(Malformed);
                    }
                    if let Some(part) = self.begins(byte) {
                        self.open = Some((part, self.depth));
                        from = at;
                    }
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth = self.depth.checked_sub(1).ok_or(Malformed)?;
                    if let Some((part, _)) = self.open.take_if(|(_, depth)| *depth == self.depth) {
                        let part = self.push(part, &chunk[from..=at]);
                        self.is_taken = true;
                        return Ok((at + 1, Some(part)));
                    }
                    match self.depth {
                        0 => self.has_ended = true,
                        1 => self.in_items = false,
                        _ => {}
                    }
                }
                _ if self.depth == 0 && !byte.is_ascii_whitespace() => return Err(Malformed),
                _ => {}
            }
        }
        if let Some((part, depth)) = self.open {
            let part = self.push(part, &chunk[from..]);
            self.open = Some((part, depth));
        }
        Ok((chunk.len(), None))
    }

    fn in_string_byte(&mut self, byte: u8) {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' => self.escaped = true,
            b'"' => {
                self.in_string = false;
                return;
            }
            _ => {}
        }
        // Long enough to tell `items` and `metadata` from every other key.
        if self.depth == 1 && self.key.len() <= "metadata".len() {
            self.key.push(byte);
        }
    }

    /// The part that begins with `byte`.
    fn begins(&mut self, byte: u8) -> Option<Part> {
        match (self.depth, byte, self.key.as_slice()) {
            (1, b'{', b"metadata") => Some(Part::Metadata),
            (1, b'[', b"items") => {
                self.in_items = true;
                None
            }
            (2, b'{', _) if self.in_items => Some(Part::Item),
            _ => None,
        }
    }

    /// Appends to the text of `part`. Beyond the limit, the part is too large and nothing of it is kept.
    fn push(&mut self, part: Part, bytes: &[u8]) -> Part {
        if part == Part::TooLarge || self.text.len() + bytes.len() > self.limit {
            self.text = Vec::new();
            return Part::TooLarge;
        }
        self.text.extend_from_slice(bytes);
        part
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// The parts of `text`, which arrives in chunks of `size` bytes.
    fn split(text: &[u8], size: usize, limit: usize) -> Result<Vec<(Part, String)>, Malformed> {
        let mut splitter = ItemSplitter::new(limit);
        let mut parts = Vec::new();
        for mut chunk in text.chunks(size) {
            while !chunk.is_empty() {
                let (read, part) = splitter.feed(chunk)?;
                if let Some(part) = part {
                    parts.push((part, String::from_utf8_lossy(splitter.text()).into_owned()));
                }
                chunk = &chunk[read..];
            }
        }
        splitter.has_ended().then_some(parts).ok_or(Malformed)
    }

    fn items(parts: &[(Part, String)]) -> Vec<&str> {
        let items = parts.iter().filter(|(part, _)| *part == Part::Item);
        items.map(|(_, text)| text.as_str()).collect()
    }

    #[test]
    fn items_come_out_as_they_went_in_wherever_the_chunks_end() {
        let hostile = r#"{"a": "}]{[\"\\", "items": [{"x": 1}], "metadata": {"y": []}, "\u0022": "\\\""}"#;
        let list = format!(
            r#" {{"kind": "items", "items": [{hostile}, {{}} ,{{"b":[[]]}}], "other": {{"items": [{{}}]}}, "metadata": {{"continue": "]}}"}}}}
            "#
        );
        for size in 1..=list.len() {
            let parts = split(list.as_bytes(), size, 1000).unwrap();
            assert_eq!(items(&parts), [hostile, "{}", r#"{"b":[[]]}"#], "{size}");
            let last = parts.last().unwrap();
            assert_eq!(*last, (Part::Metadata, r#"{"continue": "]}"}"#.to_owned()));
        }
    }

    #[test]
    fn an_item_that_is_too_large_costs_itself_alone() {
        let large = json!({"x": "y".repeat(200)}).to_string();
        let list = format!(r#"{{"items":[{{"n":1}},{large},{{"n":2}}],"metadata":{{}}}}"#);
        for size in [1, 7, 64, 1000] {
            let parts = split(list.as_bytes(), size, 100).unwrap();
            let kinds: Vec<Part> = parts.iter().map(|(part, _)| *part).collect();
            let expected = [Part::Item, Part::TooLarge, Part::Item, Part::Metadata];
            assert_eq!(kinds, expected, "{size}");
            assert_eq!(items(&parts), [r#"{"n":1}"#, r#"{"n":2}"#]);
            assert_eq!(parts[1].1, "");
        }
    }

    #[test]
    fn memory_of_a_large_item_is_given_back() {
        let mut splitter = ItemSplitter::new(1 << 20);
        let large = format!(r#"{{"items":[{{"x":"{}"}},"#, "y".repeat(1 << 19));
        let (read, part) = splitter.feed(large.as_bytes()).unwrap();
        assert_eq!(part, Some(Part::Item));
        assert!(splitter.text.capacity() > KEPT_CAPACITY && splitter.pending() == 0);
        splitter.feed(&large.as_bytes()[read..]).unwrap();
        assert!(splitter.text.capacity() <= KEPT_CAPACITY);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "]", "{}}", r#"{"items": [{}"#, "{} {}", "{}x", "\"a\" {}"] {
            assert_eq!(split(text.as_bytes(), 3, 100), Err(Malformed), "{text}");
        }
        // Items that are no objects are no objects of Kubernetes.
        for text in [
            "{}",
            r#"{"items": null}"#,
            r#"{"items": ["a", 7, [{}]]}"#,
            "[[{}]]",
        ] {
            assert_eq!(split(text.as_bytes(), 3, 100), Ok(Vec::new()), "{text}");
        }
    }

    fn document() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("items|metadata|\\PC{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_parser(values in prop::collection::vec(document(), 0..6), size in 1..50_usize) {
            let objects: Vec<Value> = values.into_iter().filter(Value::is_object).collect();
            let list = json!({"kind": "List", "items": objects, "metadata": {"resourceVersion": "7"}}).to_string();
            let parts = split(list.as_bytes(), size, usize::MAX).unwrap();
            let found: Vec<Value> = items(&parts).iter().map(|item| serde_json::from_str(item).unwrap()).collect();
            prop_assert_eq!(found, objects);
        }
    }
}
