//! Texts and queries for property tests.

use proptest::prelude::*;

/// Text with much of what is special to the analyser.
pub(super) fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-c]{1,3}",
        2 => "[a-cA-C0-2]{1,6}",
        2 => "[ _.\"*:,'’()-]{1,2}",
        2 => "[我喜欢机器ก่อนน้ำかガﾞｶ한국]{1,4}",
        1 => "[éßÉ\u{301}\u{300}İıſﬁøẞ\u{AD}\u{200D}\u{FE0F}]{1,3}",
        1 => "[😀👍🏽🇩🇪❤ﷺ½㎏①™हिन्दी]{1,3}",
        1 => "\\PC{1,4}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// A query with much of what is special to the language, and words that [`any_text`] has.
pub(super) fn any_query() -> impl Strategy<Value = String> {
    let sign = prop_oneof![6 => Just(""), 1 => Just("-"), 1 => Just("\""), 1 => Just("role:"), 1 => Just("in:")];
    let end = prop_oneof![4 => Just(" "), 1 => Just("* "), 1 => Just("\" "), 1 => Just("")];
    let word = prop_oneof![4 => "[a-c]{1,2}", 1 => any_text()];
    let piece = (sign, word, end).prop_map(|(sign, word, end)| format!("{sign}{word}{end}"));
    prop::collection::vec(piece, 0..5).prop_map(|pieces| pieces.concat())
}
