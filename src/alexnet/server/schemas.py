"""Response models, which FastAPI checks and describes in /openapi.json."""

from typing import Any

from pydantic import BaseModel

from alexnet.server.uploads import FIELDS


class Error(BaseModel):
    """Why a request was refused, in one line."""

    error: str


class LabelProbability(BaseModel):
    """A label with its calibrated probability."""

    label: str
    probability: float


class Prediction(BaseModel):
    """The most probable labels of an image, best first, and whether it shows one of them, if the run can tell."""

    image: str
    predictions: list[LabelProbability]
    known: bool | None = None


class Unreadable(BaseModel):
    """Reason why an image cannot be read."""

    image: str
    error: str


class FeatureMaps(BaseModel):
    """Feature maps of a convolution: their shape C H W, and the strongest ones as PNG data URIs."""

    shape: tuple[int, int, int]
    pictures: list[str]


class Explanation(Prediction):
    """A prediction with the network's input, heat maps of the first label by method, feature maps by layer; PNG data URIs."""

    pixels: str
    heat: dict[str, str]
    maps: dict[str, FeatureMaps]


class Preview(BaseModel):
    """An image, upright, as a JPEG data URI of at most 1,600 x 1,600 pixels."""

    image: str
    preview: str


class Accuracy(BaseModel):
    """Accuracy on the test images, or on the validation images if there are no test images."""

    split: str
    images: int
    top1: float
    top1_interval: tuple[float, float]


class Model(BaseModel):
    """The run being served; `key` tells whether `POST` needs an API key.

    The network sees a photo cropped or stretched to a square (`fit`) and enlarged about its centre by `zoom`, x and y, which
    cuts off its edges; a negative x mirrors it.
    """

    run: str
    variant: str
    labels: tuple[str, ...]
    input: tuple[int, int, int]
    fit: str
    zoom: tuple[float, float]
    temperature: float
    accuracy: Accuracy | None
    limits: dict[str, int | float]
    key: bool


FILE = {"type": "string", "format": "binary"}
FILES = {"type": "array", "items": FILE, "minItems": 1}
FORM = {"type": "object", "properties": dict.fromkeys(FIELDS, FILES), "minProperties": 1, "additionalProperties": False}
CONTENT = {"multipart/form-data": {"schema": FORM}, "application/octet-stream": {"schema": FILE}, "image/*": {"schema": FILE}}
BODY: dict[str, Any] = {"requestBody": {"required": True, "content": CONTENT}}
ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": Error} for status in (400, 401, 403, 408, 413, 415, 422, 429)}
