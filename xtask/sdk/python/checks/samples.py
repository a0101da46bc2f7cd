"""Items for the checks to store."""


def said(text, role="user"):
    """A message as people write one."""
    return {"role": role, "content": text}


def numbered(count, start=0):
    """Messages that say their number."""
    return [said(f"number {n}") for n in range(start, start + count)]


def text_of(item):
    """What a message says."""
    return item.content[0].text


REASONING = {
    "type": "reasoning",
    "id": "rs_0a1b2c3d4e5f",
    "summary": [{"type": "summary_text", "text": "The user wants the weather, so a tool has to be called."}],
    "encrypted_content": "gAAAAABo" + "Zm9v" * 200 + "==",
    "status": "completed",
}
FUNCTION_CALL = {
    "type": "function_call",
    "id": "fc_0a1b2c3d4e5f",
    "call_id": "call_weather",
    "name": "weather",
    "arguments": '{"town": "Lisbon",  "days":2, "a":1.10}',
    "status": "completed",
}
FUNCTION_CALL_OUTPUT = {
    "type": "function_call_output",
    "call_id": "call_weather",
    "output": '{"sky": "clear", "celsius": 21.50}',
}
ANSWER = {
    "type": "message",
    "id": "msg_0a1b2c3d4e5f",
    "role": "assistant",
    "status": "completed",
    "phase": "final_answer",
    "content": [
        {
            "type": "output_text",
            "text": "Clear, 21 degrees.",
            "annotations": [
                {"type": "url_citation", "url": "https://weather.example/", "title": "Weather", "start_index": 0, "end_index": 5}
            ],
            "logprobs": [
                {
                    "token": "Clear",
                    "logprob": -0.015625,
                    "bytes": [67, 108],
                    "top_logprobs": [{"token": "Clear", "logprob": -0.015625, "bytes": [67, 108]}],
                }
            ],
        },
        {"type": "refusal", "refusal": "More I cannot say."},
    ],
}
# A turn with a tool, in the order in which a model needs it.
TURN = [said("What is the weather in Lisbon?"), REASONING, FUNCTION_CALL, FUNCTION_CALL_OUTPUT, ANSWER]

# One of each type that clients send, and one that nobody sends yet.
KINDS = [
    {
        "type": "message",
        "role": "user",
        "status": "completed",
        "content": [
            {"type": "input_text", "text": "Look."},
            {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo=", "detail": "low"},
            {"type": "input_file", "file_id": "file-1", "filename": "a.pdf"},
        ],
    },
    {"type": "message", "role": "developer", "status": "completed", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"type": "message", "role": "system", "status": "completed", "content": [{"type": "input_text", "text": "Be kind."}]},
    ANSWER,
    REASONING,
    FUNCTION_CALL,
    FUNCTION_CALL_OUTPUT,
    {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "in parts"}]},
    {"type": "custom_tool_call", "call_id": "call_3", "name": "sql", "input": "SELECT 1;\n-- ünïcode"},
    {"type": "custom_tool_call_output", "call_id": "call_3", "output": "1"},
    {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "search", "query": "lisbon", "sources": [{"type": "url", "url": "https://a.example/"}]},
    },
    {
        "type": "file_search_call",
        "id": "fs_1",
        "status": "completed",
        "queries": ["lisbon"],
        "results": [{"file_id": "file-1", "filename": "a.pdf", "score": 0.875, "text": "Alfama", "attributes": {"page": 3}}],
    },
    {
        "type": "computer_call",
        "id": "cu_1",
        "call_id": "call_4",
        "status": "completed",
        "pending_safety_checks": [],
        "action": {"type": "click", "button": "left", "x": 3, "y": 4},
    },
    {"type": "computer_call_output", "call_id": "call_4", "output": {"type": "computer_screenshot", "image_url": "data:,"}},
    {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "status": "completed",
        "code": "print(1)",
        "container_id": "cntr_1",
        "outputs": [{"type": "logs", "logs": "1\n"}],
    },
    {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "iVBORw0KGgo="},
    {
        "type": "local_shell_call",
        "id": "lsh_1",
        "call_id": "call_5",
        "status": "completed",
        "action": {"type": "exec", "command": ["ls", "-l"], "env": {}},
    },
    {"type": "local_shell_call_output", "id": "call_5", "output": "total 0"},
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "docs", "tools": [{"name": "find", "input_schema": {}}]},
    {"type": "mcp_call", "id": "mcp_1", "server_label": "docs", "name": "find", "arguments": "{}", "output": "found"},
    {"type": "mcp_approval_request", "id": "mcpr_1", "server_label": "docs", "name": "find", "arguments": "{}"},
    {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True},
    {"type": "compaction", "encrypted_content": "gAAAAABo" * 50},
    {"type": "configuration_update", "id": "cfg_1", "reasoning": {"effort": "low"}},
    {
        "type": "telepathy_call",
        "id": "tp_1",
        "wavelength": 1.5,
        "nothing": None,
        "deep": [{"er": [[], {}, [None, True, -0.0]]}],
    },
    {"type": "telepathy_call_output", "thought": "of a type that does not exist yet"},
]
