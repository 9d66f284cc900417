"""The answers' forms, for /openapi.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from alexnet.server.uploads import FIELDS


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Failure(_Form):
    """Why a request was not answered: one line."""

    error: str


class Prediction(_Form):
    """A label with its calibrated probability."""

    label: str
    probability: float


class Predicted(_Form):
    """What is on an image, best label first."""

    image: str
    predictions: list[Prediction]


class Unread(_Form):
    """Why an image cannot be read."""

    image: str
    error: str


class Heat(_Form):
    """Why the first label: PNG data URIs with transparency, to be laid over the image."""

    grad_cam: str
    occlusion: str
    integrated_gradients: str


class Maps(_Form):
    """What a convolution shows: its maps' shape, C H W, and the strongest ones as PNG data URIs."""

    shape: tuple[int, int, int]
    pictures: list[str]


class Explained(Predicted):
    """What the network made of an image; `pixels` is the image as it goes in, a PNG data URI."""

    pixels: str
    heat: Heat
    maps: dict[str, Maps]


class Accuracy(_Form):
    """Measured on the test images, or where there are none on those that validated."""

    split: Literal["test", "validation"]
    images: int
    top1: float
    top1_interval: tuple[float, float]


class LimitsSaid(_Form):
    """What is too much: bytes of a request, images of a request, pixels of an image, seconds for a body and for an answer."""

    bytes: int
    files: int
    pixels: int
    body_seconds: float
    answer_seconds: float


class Model(_Form):
    """The run that answers; `key` tells whether POSTs need one."""

    run: str
    variant: str
    labels: list[str]
    input: tuple[int, int, int]
    temperature: float
    accuracy: Accuracy | None
    limits: LimitsSaid
    key: bool


class Health(_Form):
    """The server answers."""

    status: Literal["ok"] = "ok"


_FILE = {"type": "string", "format": "binary"}
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {field: {"type": "array", "items": _FILE, "minItems": 1} for field in FIELDS},
                    "minProperties": 1,
                    "additionalProperties": False,
                }
            },
            "application/octet-stream": {"schema": _FILE},
            "image/*": {"schema": _FILE},
        },
    },
    "security": [{}, {"bearer": []}, {"key": []}],
}
SECURITY = {"bearer": {"type": "http", "scheme": "bearer"}, "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"}}
STATUSES = {
    400: "no image, or a body that is not well-formed",
    401: "a key is needed",
    403: "a page of another site asks",
    408: "the body came too slowly",
    413: "too many bytes or images",
    415: "a Content-Type that is not read: the message names the right command",
    421: "not asked as localhost",
    422: "a parameter that cannot be, or an image that cannot be read",
    429: "too much waits for an answer: try again after Retry-After seconds",
}


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what a route may answer instead."""
    return {status: {"model": Failure, "description": STATUSES[status]} for status in (*statuses, 421)}
