"""What every answer says to a browser, and how errors are said."""

from __future__ import annotations

import json

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
RAW_HEADERS = [(name.encode(), value.encode()) for name, value in HEADERS.items()]


def error_body(message: str) -> bytes:
    """Return `{"error": "one line"}`."""
    return json.dumps({"error": message}, ensure_ascii=False).encode("utf-8", "backslashreplace")


def plain_answer(status: int, phrase: str, message: str) -> bytes:
    """Return a whole HTTP answer, for those whose request never came so far as to be one."""
    body = error_body(message)
    headers = {**HEADERS, "content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    headers |= {"retry-after": "1"} if status == 429 else {}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {phrase}\r\n{head}\r\n".encode() + body
