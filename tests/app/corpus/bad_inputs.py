"""The table of bad inputs: what is sent, and the answer that it must get. Ids are those of the product's own list."""

from typing import Any

from cases import (
    CHAT,
    MODEL,
    QUANTIZE,
    VOCABULARY,
    Case,
    chat,
    completion,
    message,
    quantize,
    raw,
    streamed,
    tool,
    with_authorization,
    with_schema,
    with_text,
)
from raw_http import post, request

JSON_BODIES = [
    Case("B01-empty", post(CHAT, b""), 400, "invalid_json"),
    Case("B02-malformed", post(CHAT, b'{"model": "a", '), 400, "invalid_json"),
    Case("B03-array", post(CHAT, b"[1,2]"), 400, "invalid_type"),
    Case("B04-string", post(CHAT, b'"x"'), 400, "invalid_type"),
    Case("B05-null", post(CHAT, b"null"), 400, "invalid_type"),
    Case("B06-number", post(CHAT, b"42"), 400, "invalid_type"),
    Case("B07-nan", with_text('"temperature": NaN'), 400, "invalid_json"),
    Case("B08-infinity", with_text('"temperature": Infinity'), 400, "invalid_json"),
    Case("B09-1e400", with_text('"temperature": 1e400'), 400, "invalid_value", "temperature"),
    Case("B10-duplicate-key", with_text('"n": 1, "n": 2'), 400, "invalid_json"),
    Case("B11-lone-surrogate", post(CHAT, b'{"model": "\\ud800"}'), 400, "invalid_unicode", "model"),
    Case("B12-invalid-utf8", with_text('"user": "\xff\xfe"', "latin-1"), 400, "invalid_json"),
    Case("B13-utf16", with_text('"n": 1', "utf-16"), 400, "invalid_json"),
    Case("B14-bom", post(CHAT, b"\xef\xbb\xbf{}"), 400, "invalid_json"),
    Case("B15-nul-between", post(CHAT, b'{"model": \0"a"}'), 400, "invalid_json"),
    Case("B16-nul-in-model", chat(model="a\0b"), 404, "model_not_found", "model"),
    Case("B17-5000-digits", with_text('"n": ' + "9" * 5000), 400, "invalid_json"),
    Case("B18-100-digits", with_text('"n": ' + "9" * 100), 400, "integer_above_max_value", "n"),
    Case("B19-depth-1000", post(CHAT, b"[" * 1000 + b"]" * 1000), 400, "json_too_deep"),
    Case("B20-depth-objects", post(CHAT, b'{"a":' * 1000 + b"1" + b"}" * 1000), 400, "json_too_deep"),
    Case("B21-depth-unclosed", post(CHAT, b"[" * 100_000), 400, "json_too_deep"),
    Case("B22-trailing", post(CHAT, b"{}x"), 400, "invalid_json"),
    Case("B116-unclosed-string", post(CHAT, b"[" * 65 + b'"' + b"a" * 100), 400, "json_too_deep"),
    Case("B117-too-many-objects", with_text('"metadata": [' + "{}," * 2**17 + "{}]"), 400, "json_too_complex"),
    Case("B118-257-fields", post(CHAT, {str(number): 0 for number in range(257)}), 400, "json_too_complex"),
]

MEDIA_TYPES = [
    Case("B23-text-plain", request("POST", CHAT, b"{}", content_type="text/plain"), 415, "unsupported_media_type"),
    Case("B24-no-content-type", request("POST", CHAT, b"{}"), 415, "unsupported_media_type"),
    Case(
        "B25-form",
        request("POST", CHAT, b"a=b", content_type="application/x-www-form-urlencoded"),
        415,
        "unsupported_media_type",
    ),
    Case(
        "B26-multipart",
        request("POST", CHAT, b"--x--", content_type="multipart/form-data; boundary=x"),
        415,
        "unsupported_media_type",
    ),
    Case(
        "B27-json-like", request("POST", CHAT, b"{}", content_type="application/json5"), 415, "unsupported_media_type"
    ),
]

HTTP = [
    Case(
        "B28-body-over-limit",
        raw(f"POST {CHAT} HTTP/1.1", "host: x", "content-type: application/json", f"content-length: {2**22 + 1}"),
        413,
        "content_too_large",
        closes=True,
    ),
    Case(
        "B29-body-over-limit-chunked",
        raw(
            f"POST {CHAT} HTTP/1.1",
            "host: x",
            "content-type: application/json",
            "transfer-encoding: chunked",
            body=(b"100000\r\n" + b" " * 2**20 + b"\r\n") * 5,
        ),
        413,
        "content_too_large",
        closes=True,
    ),
    Case("B30-long-header", request("GET", "/v1/models", b"", "x: " + "a" * 33 * 1024), 431, "headers_too_large"),
    Case(
        "B31-101-headers",
        request("GET", "/v1/models", b"", *(f"x-{number}: 1" for number in range(101))),
        431,
        "headers_too_large",
        closes=True,
    ),
    Case(
        "B32-length-and-chunked",
        raw(f"POST {CHAT} HTTP/1.1", "host: x", "content-length: 2", "transfer-encoding: chunked", body=b"{}"),
        400,
        "invalid_http",
        closes=True,
    ),
    Case(
        "B33-negative-length",
        raw(f"POST {CHAT} HTTP/1.1", "host: x", "content-length: -1"),
        400,
        "invalid_http",
        closes=True,
    ),
    Case(
        "B34-two-lengths",
        raw(f"POST {CHAT} HTTP/1.1", "host: x", "content-length: 2", "content-length: 3", body=b"{}"),
        400,
        "invalid_http",
        closes=True,
    ),
    Case(
        "B35-length-text",
        raw(f"POST {CHAT} HTTP/1.1", "host: x", "content-length: two"),
        400,
        "invalid_http",
        closes=True,
    ),
    Case("B36-no-host", raw("GET /v1/models HTTP/1.1"), 400, "invalid_host"),
    Case("B37-bad-host", raw("GET /v1/models HTTP/1.1", "host: a/b?x="), 400, "invalid_host"),
    Case("B38-tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "invalid_http", closes=True),
    Case("B39-unknown-url", post("/v1/foo", {}), 404, None),
    Case("B40-wrong-method", request("GET", CHAT), 405, "method_not_supported", headers=("allow",)),
]

KEYS = [
    Case(f"{id}", data, 401, "invalid_api_key", headers=("www-authenticate",))
    for id, data in (
        ("B41-no-key", request("GET", "/v1/models", key=None)),
        ("B42-wrong-key", request("GET", "/v1/models", key="wrong")),
        ("B43-sql-key", request("GET", "/v1/models", key="' OR 1=1 --")),
        ("B44-10-kB-key", request("GET", "/v1/models", key="k" * 10_000)),
        ("B45-non-ascii-key", with_authorization(b"Bearer k\xe9y\xff")),
        ("B46-basic", with_authorization(b"Basic c2VjcmV0")),
    )
] + [
    Case(
        "B47-inference-key-on-admin",
        post(QUANTIZE, {"model": "slimstory", "method": "int8"}, key="infer"),
        403,
        "insufficient_scope",
        type="permission_error",
    )
]

MODELS = [
    Case("B48-missing-model", chat(model=...), 400, "missing_required_parameter", "model"),
    Case("B49-model-int", chat(model=5), 400, "invalid_type", "model"),
    Case("B50-model-unknown", chat(model="nope"), 404, "model_not_found", "model"),
    Case("B51-model-traversal", chat(model="../../etc/passwd"), 404, "model_not_found", "model"),
    Case("B52-model-300-characters", chat(model="x" * 300), 404, "model_not_found", "model"),
]

MESSAGES = [
    Case("B55-messages-missing", chat(messages=...), 400, "missing_required_parameter", "messages"),
    Case("B56-messages-empty", chat(messages=[]), 400, "empty_array", "messages"),
    Case("B57-messages-string", chat(messages="hi"), 400, "invalid_type", "messages"),
    Case("B58-message-null", chat(messages=[None]), 400, "invalid_type", "messages[0]"),
    Case("B59-bad-role", message(role="wizard"), 400, "invalid_value", "messages[0].role"),
    Case("B60-content-number", message(content=5), 400, "invalid_type", "messages[0].content"),
    Case(
        "B61-content-image",
        message(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
        400,
        "unsupported_content",
        "messages[0].content[0]",
    ),
    Case(
        "B62-3000-messages",
        chat(messages=[{"role": "user", "content": "hi"}] * 3000),
        400,
        "array_above_max_length",
        "messages",
    ),
    Case("B63-content-null", message(content=None), 400, "missing_required_parameter", "messages[0].content"),
    Case("B64-chat-template", chat(chat_template="{{ 1 }}"), 400, "unsupported_parameter", "chat_template"),
    Case(
        "B65-template-switch",
        chat(chat_template_kwargs={"tokenize": True}),
        400,
        "unsupported_parameter",
        "chat_template_kwargs",
    ),
    Case("B66-prompt-too-long", message(content="dog " * 5000), 400, "context_length_exceeded", "messages"),
    Case("B67-3-MB", message(content="x" * 3_000_000), 400, "context_length_exceeded", "messages"),
]

SAMPLING = [
    Case("B68-no-room", chat(max_tokens=4096), 400, "context_length_exceeded", "max_tokens"),
    Case("B69-max-tokens-0", chat(max_tokens=0), 400, "integer_below_min_value", "max_tokens"),
    Case("B70-max-tokens-negative", chat(max_tokens=-1), 400, "integer_below_min_value", "max_tokens"),
    Case("B71-max-tokens-huge", chat(max_tokens=10**9), 400, "context_length_exceeded", "max_tokens"),
    Case("B72-max-tokens-2-63", chat(max_tokens=2**63), 400, "integer_above_max_value", "max_tokens"),
    Case("B73-max-tokens-text", chat(max_tokens="3"), 400, "invalid_type", "max_tokens"),
    Case("B74-max-tokens-true", chat(max_tokens=True), 400, "invalid_type", "max_tokens"),
    Case("B75-max-tokens-float", chat(max_tokens=1.5), 400, "invalid_type", "max_tokens"),
    Case("B76-min-over-max", chat(min_tokens=3), 400, "invalid_value", "min_tokens"),
    Case("B77-n-0", chat(n=0), 400, "integer_below_min_value", "n"),
    Case("B78-n-17", chat(n=17), 400, "integer_above_max_value", "n"),
    Case("B79-n-1e9", chat(n=10**9), 400, "integer_above_max_value", "n"),
    Case("B80-temperature", chat(temperature=-0.1), 400, "decimal_below_min_value", "temperature"),
    Case("B80-temperature-high", chat(temperature=2.01), 400, "decimal_above_max_value", "temperature"),
    Case("B81-top-p-0", chat(top_p=0), 400, "decimal_below_min_value", "top_p"),
    Case("B81-top-p-high", chat(top_p=1.1), 400, "decimal_above_max_value", "top_p"),
    Case("B82-top-k", chat(top_k=-5), 400, "integer_below_min_value", "top_k"),
    Case("B83-presence", chat(presence_penalty=2.01), 400, "decimal_above_max_value", "presence_penalty"),
    Case("B83-frequency", chat(frequency_penalty=-2.01), 400, "decimal_below_min_value", "frequency_penalty"),
    Case("B83-repetition", chat(repetition_penalty=0), 400, "decimal_below_min_value", "repetition_penalty"),
    Case("B84-seed", chat(seed=2**63), 400, "integer_above_max_value", "seed"),
    Case("B85-17-stops", chat(stop=["a"] * 17), 400, "array_above_max_length", "stop"),
    Case("B86-empty-stop", chat(stop=[""]), 400, "string_too_short", "stop[0]"),
    Case("B87-bias-key", chat(logit_bias={"x": 1}), 400, "invalid_value", "logit_bias"),
    Case("B88-bias-token", chat(logit_bias={str(VOCABULARY): 1}), 400, "invalid_value", "logit_bias"),
    Case("B89-stop-token", chat(stop_token_ids=[VOCABULARY]), 400, "invalid_value", "stop_token_ids"),
    Case("B90-priority", chat(priority=2**31), 400, "integer_above_max_value", "priority"),
    Case("B91-top-21", chat(logprobs=True, top_logprobs=21), 400, "integer_above_max_value", "top_logprobs"),
    Case("B91-top-without-logprobs", chat(top_logprobs=2), 400, "invalid_value", "top_logprobs"),
    Case("B91-top-negative", chat(logprobs=True, top_logprobs=-1), 400, "integer_below_min_value", "top_logprobs"),
    Case("B92-options-without-stream", chat(stream_options={}), 400, "invalid_value", "stream_options"),
    Case("B93-stream-text", chat(stream="yes"), 400, "invalid_type", "stream"),
    Case("B98-audio", chat(audio={"voice": "x"}), 400, "unsupported_parameter", "audio"),
    Case("B98-functions", chat(functions=[{"name": "f"}]), 400, "unsupported_parameter", "functions"),
    Case("B98-prediction", chat(prediction={"type": "content"}), 400, "unsupported_parameter", "prediction"),
    Case("B98-web-search", chat(web_search_options={"a": 1}), 400, "unsupported_parameter", "web_search_options"),
    Case("tool-without-type", chat(tools=[{}]), 400, "missing_required_parameter", "tools[0].type"),
    Case("tool-choice-without-tools", chat(tool_choice="required"), 400, "invalid_value", "tool_choice"),
    Case(
        "tool-with-a-schema-that-nobody-enforces",
        chat(tools=[tool({"type": "object", "properties": {"a": {"minContains": 1}}})], tool_choice="required"),
        400,
        "invalid_schema",
        "tools[0].function.parameters",
    ),
    Case("B98-modalities", chat(modalities=["audio"]), 400, "unsupported_parameter", "modalities"),
]


SCHEMA = "response_format.json_schema.schema"
DEPTH_33: dict[str, Any] = {}
for _ in range(32):
    DEPTH_33 = {"items": DEPTH_33}
CYCLE = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}

STRUCTURE = [
    Case(
        "B94-no-schema",
        chat(response_format={"type": "json_schema", "json_schema": {"name": "answer"}}),
        400,
        "missing_required_parameter",
        SCHEMA,
    ),
    Case("B94-type", chat(response_format={"type": "foo"}), 400, "invalid_value", "response_format.type"),
    Case("B95-depth-33", with_schema(DEPTH_33), 400, "invalid_schema", SCHEMA),
    Case("B95-65-KiB", with_schema({"title": "x" * 2**16}), 400, "invalid_schema", SCHEMA),
    Case("B95-reference-cycle", with_schema(CYCLE), 400, "invalid_schema", SCHEMA),
    Case("B95-external-reference", with_schema({"$ref": "http://a.example/b"}), 400, "invalid_schema", SCHEMA),
    Case("B95-keyword", with_schema({"not": {}}), 400, "invalid_schema", SCHEMA),
    Case(
        "B96-huge-regex",
        chat(structured_outputs={"regex": "(a{1000}){1000}"}),
        400,
        "invalid_regex",
        "structured_outputs.regex",
    ),
    Case(
        "B96-endless-grammar",
        completion(structured_outputs={"grammar": "start: start"}),
        400,
        "invalid_grammar",
        "structured_outputs.grammar",
    ),
    Case("B96-guided-no-json", completion(guided_json="{"), 400, "invalid_schema", "guided_json"),
]

PROMPTS = [
    Case("B99-no-prompt", completion(prompt=[]), 400, "empty_array", "prompt"),
    Case("B99-empty-ids", completion(prompt=[[]]), 400, "empty_array", "prompt[0]"),
    Case("B99-negative-id", completion(prompt=[-1]), 400, "integer_below_min_value", "prompt[0]"),
    Case("B99-id-of-vocabulary", completion(prompt=[VOCABULARY]), 400, "integer_above_max_value", "prompt[0]"),
    Case("B99-65-prompts", completion(prompt=["a"] * 65), 400, "array_above_max_length", "prompt"),
    Case("B99-best-of", completion(best_of=2), 400, "unsupported_parameter", "best_of"),
    Case("B99-suffix", completion(suffix="x"), 400, "unsupported_parameter", "suffix"),
    Case("B99-mixed", completion(prompt=["a", 5]), 400, "invalid_type", "prompt[1]"),
    Case("B119-a-million-bad-ids", completion(prompt=[1] + [-1] * 10**6), 400, "integer_below_min_value", "prompt[1]"),
    Case("B120-too-many-ids", completion(prompt=[1] * (2**20 + 1)), 400, "array_above_max_length", "prompt"),
    Case(
        "B121-too-many-biases",
        completion(logit_bias=dict.fromkeys(map(str, range(100_000)), "x")),
        400,
        "array_above_max_length",
        "logit_bias",
    ),
    Case(
        "B122-a-million-bad-tokens",
        post("/detokenize", {"model": MODEL, "tokens": [-1] * 10**6}),
        400,
        "integer_below_min_value",
        "tokens[0]",
    ),
]

JOBS = [
    Case("B102-bits", quantize(method="rtn", options={"num_bits": 5}), 400, "invalid_value", "options.num_bits"),
    Case("B102-group", quantize(method="rtn", options={"group_size": 3}), 400, "invalid_value", "options.group_size"),
    Case("B102-method", quantize(method="magic"), 400, "invalid_value", "method"),
    Case(
        "B102-calibration-path",
        quantize(method="gptq", calibration={"source": "file", "path": "/etc/passwd"}),
        403,
        "folder_not_allowed",
        "calibration.path",
        type="permission_error",
    ),
    Case("B102-extra", quantize(calibration={"extra": 1}), 400, "unknown_parameter", "calibration.extra"),
    Case("B102-base-missing", quantize(model="nobody"), 404, "base_not_found", "model"),
    Case("B103-not-an-id", request("GET", "/v1/jobs/nothing"), 404, "job_not_found"),
    Case("B103-unknown-id", request("GET", "/v1/jobs/01890a5d-ac96-774b-bcce-b302099a8057"), 404, "job_not_found"),
]

OTHERS = [
    Case("B37-other-host", raw("GET /v1/models HTTP/1.1", "host: [::1"), 400, "invalid_host"),
    Case(
        "B104-other-origin",
        post(CHAT, {}, "origin: http://evil.example"),
        403,
        "origin_not_allowed",
        type="permission_error",
    ),
    Case("B123-two-hosts", raw("GET /v1/models HTTP/1.1", "host: x", "host: y"), 400, "invalid_host"),
    Case("B124-gzip", post(CHAT, b"\x1f\x8b\x08", "content-encoding: gzip"), 415, "unsupported_media_type"),
    Case("B105-no-method", raw("/v1/models HTTP/1.1", "host: x"), 400, "invalid_http", closes=True),
    Case("B106-unknown-method", request("BREW", "/v1/models"), 400, "invalid_http", closes=True),
    Case("B107-http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "invalid_http", closes=True),
    Case(
        "B108-space-in-header-name",
        raw("GET /v1/models HTTP/1.1", "host: x", "a b: c"),
        400,
        "invalid_http",
        closes=True,
    ),
    Case(
        "B109-bad-chunk-size",
        raw(
            f"POST {CHAT} HTTP/1.1",
            "host: x",
            "content-type: application/json",
            "transfer-encoding: chunked",
            body=b"zz\r\n",
        ),
        400,
        "invalid_http",
        closes=True,
    ),
    Case("B110-path-traversal", request("GET", "/v1/export/../../../etc/passwd"), 404, "model_not_found", "model"),
    Case(
        "B112-responses-memory",
        post("/v1/responses", {"model": MODEL, "input": "x", "previous_response_id": "y"}),
        400,
        "unsupported_parameter",
        "previous_response_id",
    ),
    Case("B113-embeddings", post("/v1/embeddings", {"model": MODEL, "input": "x"}), 400, "unsupported_model", "model"),
    Case("B114-router-unknown-model", post("/models/load", {"model": "nobody"}), 404, "model_not_found", "model"),
    Case("B115-prefix-of-nobody", post("/v/no/body/v1/completions", {"prompt": "x"}), 404, "model_not_found", "model"),
]

CASES = [*JSON_BODIES, *MEDIA_TYPES, *HTTP, *KEYS, *MODELS, *MESSAGES, *SAMPLING, *STRUCTURE, *PROMPTS, *JOBS, *OTHERS]


STREAMED = [
    streamed(case)
    for case in [*MODELS, *MESSAGES, *SAMPLING, *STRUCTURE, *PROMPTS]
    if case.id.partition("-")[0] not in ("B92", "B93", "B122")
]
