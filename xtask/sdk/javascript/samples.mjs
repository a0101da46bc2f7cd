// Items for the checks to store.

export const said = (content, role = 'user') => ({ role, content });

/** Messages that say their number. */
export const numbered = (count, start = 0) => Array.from({ length: count }, (_, n) => said(`number ${start + n}`));

export const textOf = (item) => item.content[0].text;

/** A turn with a tool, in the order in which a model needs it. */
export const TURN = [
  said('What is the weather in Lisbon?'),
  {
    type: 'reasoning',
    id: 'rs_0a1b2c3d4e5f',
    summary: [{ type: 'summary_text', text: 'A tool has to be called.' }],
    encrypted_content: `gAAAAABo${'Zm9v'.repeat(200)}==`,
    status: 'completed',
  },
  {
    type: 'function_call',
    id: 'fc_0a1b2c3d4e5f',
    call_id: 'call_weather',
    name: 'weather',
    arguments: '{"town": "Lisbon",  "days":2, "a":1.10}',
    status: 'completed',
  },
  { type: 'function_call_output', call_id: 'call_weather', output: '{"celsius": 21.50}' },
  {
    type: 'message',
    id: 'msg_0a1b2c3d4e5f',
    role: 'assistant',
    status: 'completed',
    phase: 'final_answer',
    content: [{ type: 'output_text', text: 'Clear, 21 degrees.', annotations: [], logprobs: [] }],
  },
];

export const OTHERS = [
  { type: 'custom_tool_call', call_id: 'call_3', name: 'sql', input: 'SELECT 1;\n-- ünïcode' },
  { type: 'custom_tool_call_output', call_id: 'call_3', output: '1' },
  { type: 'compaction', encrypted_content: 'gAAAAABo'.repeat(50) },
  { type: 'telepathy_call', id: 'tp_1', wavelength: 1.5, nothing: null, deep: [{ er: [[], {}, [null, true]] }] },
];
