"""Writes templates.jsonl: templates, variables and what Jinja2 makes of them in transformers' environment.

    python3 make_templates.py > templates.jsonl      (needs jinja2 3.1)

A text of null means that Jinja2 raises an error.
"""
import json
import sys

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise RuntimeError(message)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception

PEOPLE = {"people": [{"name": "Ann", "age": 31, "tags": ["x", "Y"]}, {"name": "bob", "age": 7}, {"name": "Zoe", "age": 31.5}],
          "d": {"b": 1, "A": [1, 2, {"k": None}], "c": "é"}, "s": " Hello, Wörld! ", "n": 7, "f": 2.5, "t": True, "no": None,
          "e": "", "nul": "a\0b", "l": [3, 1, 2, 10, -4], "words": ["b", "A", "c", "a", "B"]}

EXPRESSIONS = open(__file__.replace("make_templates.py", "expressions.txt"), encoding="utf-8").read().split("\n")
BLOCKS = open(__file__.replace("make_templates.py", "blocks.txt"), encoding="utf-8").read().split("\n=====\n")

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather <now> \"q\" é", "parameters": {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1.0, "maximum": 1e20}},
    "required": ["city"]}}}]
CHATS = [
    {"messages": [{"role": "user", "content": "Hi"}]},
    {"messages": [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"},
                  {"role": "user", "content": "more"}]},
    {"messages": [{"role": "user", "content": "w?"}, {"role": "assistant", "content": None, "tool_calls": [
        {"id": "functions.get_weather:0", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Paris\"}"}},
        {"id": "functions.get_weather:1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
        {"role": "tool", "tool_call_id": "functions.get_weather:0", "content": "sunny"},
        {"role": "tool", "tool_call_id": "functions.get_weather:1", "content": "rain"},
        {"role": "assistant", "content": "<think>ok</think>\n\nfine"}, {"role": "user", "content": "thx"}], "tools": TOOLS},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "part 1"}, {"type": "text", "text": "part 2"}]}]},
    {"messages": [{"role": "user", "content": "q"}], "thinking": True, "enable_thinking": False},
    {"messages": [{"role": "assistant", "content": "I first"}]},
    {"messages": []},
]


def case(template, variables):
    try:
        text = env.from_string(template).render(**variables)
    except Exception as e:  # noqa: BLE001 (any error is an error)
        print(f"{type(e).__name__}: {e}: {template[:90]!r}", file=sys.stderr)
        text = None
    print(json.dumps({"template": template, "variables": variables, "text": text}))


for expression in EXPRESSIONS:
    if expression:
        case("{{ " + expression + " }}", PEOPLE)
for block in BLOCKS:
    case(block, PEOPLE)
for name in sys.argv[1:]:
    source = open(name, encoding="utf-8").read()
    for chat in CHATS:
        for prompt in (True, False):
            variables = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>", **chat, "add_generation_prompt": prompt}
            case(source, variables)
