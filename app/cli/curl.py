"""The curl lines that `serve` and `demo` print for a first try."""

import json
import shlex


def curl_lines(url: str, model: str, *, has_keys: bool = False) -> list[str]:
    """Commands that a user can paste: a streamed chat, the variants. has_keys: with the key that clients send."""
    key = ' -H "authorization: Bearer $SLIMSERVE_API_KEY"' if has_keys else ""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Tell me a story about a cat."}],
            "max_tokens": 100,
            # OpenAI's default, 1.0 over all tokens, makes the embedded model leave the words that it knows
            "temperature": 0.7,
            "top_p": 0.9,
            "stream": True,
        }
    )
    return [
        f"curl -N {url}/v1/chat/completions{key} -H 'content-type: application/json' -d {shlex.quote(body)}",
        f"curl {url}/v1/variants{key}",
    ]
