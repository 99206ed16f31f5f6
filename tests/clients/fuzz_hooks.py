"""For the fuzzer. A request whose own time-out in the queue is over is answered 503, as it asked: no error of the server's."""

import schemathesis


@schemathesis.hook
def before_load_schema(context, raw_schema):
    for operations in raw_schema["paths"].values():
        for operation in operations.values():
            if "parameters" in operation:
                operation["parameters"] = [p for p in operation["parameters"] if p["name"] != "x-queue-timeout"]
