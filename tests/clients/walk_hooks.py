"""For the fuzzer's walks along the description's links: what begins a generation there does begin one, so that the walk
gets somewhere. Bodies have the fields that any value of their type suits, and a prompt; of query and head nothing is
sent that need not be. What other values do is fuzzed without walking."""

import schemathesis

PLAIN = {"stream", "temperature", "seed", "user", "on_disconnect", "ignore_eos"}
PROMPTS = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "input": "hi"}
GENERATING = ["ChatRequest", "CompletionRequest", "MessageRequest", "ResponseRequest", "StreamRequest"]


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            operation["parameters"] = [p for p in operation.get("parameters", []) if p["required"]]
    schemas = raw_schema["components"]["schemas"]
    for name in GENERATING:
        fields = schemas[name]["properties"]
        # Either of a stream's prompts would do; one must be there.
        prompt = next(prompt for prompt in ("prompt", "messages", "input") if prompt in fields)
        schemas[name]["properties"] = {field: schema for field, schema in fields.items() if field in PLAIN}
        schemas[name]["properties"][prompt] = {"enum": [PROMPTS[prompt]]}
        schemas[name]["required"] = [prompt]
    # Only what is kept can be asked for, and only what runs in the background be cancelled.
    schemas["ResponseRequest"]["properties"]["background"] = {"enum": [True]}
    schemas["ResponseRequest"]["required"].append("background")
    schemas["MessageRequest"]["properties"]["max_tokens"] = {"enum": [8]}
    schemas["MessageRequest"]["required"].append("max_tokens")
