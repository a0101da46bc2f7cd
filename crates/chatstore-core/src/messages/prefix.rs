//! What ids of items begin with on the Conversations wire.

use super::KIND_MESSAGE;

/// Prefixes by type: the models' API refuses an item whose id has another's.
const PREFIXES: [(&str, &str); 29] = [
    (KIND_MESSAGE, MESSAGE_PREFIX),
    ("reasoning", "rs"),
    ("function_call", "fc"),
    ("function_call_output", "fco"),
    ("custom_tool_call", "ctc"),
    ("custom_tool_call_output", "ctco"),
    ("web_search_call", "ws"),
    ("file_search_call", "fs"),
    ("computer_call", "cu"),
    ("computer_call_output", "cuo"),
    ("code_interpreter_call", "ci"),
    ("image_generation_call", "ig"),
    ("local_shell_call", "lsh"),
    ("local_shell_call_output", "lsho"),
    ("shell_call", "sh"),
    ("shell_call_output", "sho"),
    ("apply_patch_call", "apc"),
    ("apply_patch_call_output", "apco"),
    ("mcp_call", "mcp"),
    ("mcp_list_tools", "mcpl"),
    ("mcp_approval_request", "mcpr"),
    ("mcp_approval_response", "mcpa"),
    ("compaction", "cmp"),
    ("tool_search_call", "tsc"),
    ("tool_search_output", "tso"),
    ("additional_tools", "at"),
    ("program", "prog"),
    ("program_output", "progo"),
    ("configuration_update", "cfg"),
];

/// That of messages, and of what is shown as one.
pub(super) const MESSAGE_PREFIX: &str = "msg";

/// What the id of an item of this type begins with, before `_`.
pub fn item_prefix(kind: &str) -> &'static str {
    PREFIXES.iter().find(|(of, _)| *of == kind).map_or("item", |(_, prefix)| prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_a_prefix_of_its_own() {
        let prefixes: std::collections::HashSet<_> = PREFIXES.iter().map(|(_, prefix)| prefix).collect();
        assert_eq!(prefixes.len(), PREFIXES.len());
        assert_eq!((item_prefix("message"), item_prefix("of_tomorrow")), ("msg", "item"));
    }
}
