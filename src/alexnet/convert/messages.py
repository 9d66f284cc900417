"""Parse protocol buffers, reading only the fields of a schema; nothing in them is executed.

Arrays of numbers are declared as bytes, as they are stored: 61 million weights would become as many Python objects.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from alexnet.errors import WeightsError

Field = descriptor_pb2.FieldDescriptorProto


def read_message(path: Path, schema: str, kind: str) -> Any:
    """Return the message of `kind` in a file, with fields as in `schema`.

    A line of the schema is `Message: type name number, …`; `type*` is repeated, and a fourth word is the default value.

    Raises:
        WeightsError: the file is not such a message.
    """
    message = _classes(schema)[kind]()
    try:
        message.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise WeightsError("is damaged, or in another format") from error
    return message


@functools.cache
def _classes(schema: str) -> dict[str, Any]:
    """Return the class of each message of a schema."""
    file = descriptor_pb2.FileDescriptorProto(name="schema", package="schema", syntax="proto2")
    for line in schema.strip().splitlines():
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name.strip())
        for field in fields.split(","):
            kind, key, number, *default = field.split()
            added = message.field.add(name=key, number=int(number), default_value=default[0] if default else None)
            added.label = Field.LABEL_REPEATED if kind.endswith("*") else Field.LABEL_OPTIONAL
            kind = kind.rstrip("*")
            if kind[0].isupper():
                added.type, added.type_name = Field.TYPE_MESSAGE, f".schema.{kind}"
            else:
                added.type = Field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = [message.name for message in file.message_type]
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"schema.{name}")) for name in names}


def to_array(parts: Sequence[bytes], kind: str, shape: Sequence[int], name: str) -> NDArray[np.float32]:
    """Return an array stored as bytes of the NumPy type `kind`, of a layer called `name`, as float32."""
    content = parts[0] if len(parts) == 1 else b"".join(parts)
    if min(shape, default=1) < 0 or math.prod(shape) * np.dtype(kind).itemsize != len(content):
        has = f"{len(content) // np.dtype(kind).itemsize:,} values for weights of {'x'.join(map(str, shape))[:60] or 'one'}"
        raise WeightsError(f"is damaged: its layer {name[:60]!r} holds {has}")
    return np.frombuffer(content, kind).reshape(shape).astype(np.float32)
