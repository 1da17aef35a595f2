"""Reads robot trajectories of BAIR from TFRecord files, without TensorFlow.

A TFRecord is: length (uint64), checksum of the length, content, checksum of the content. The content is a
SequenceExample. Its first field, the context, has the wire format of the only field of an Example.
"""

import pathlib
import struct

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow_datasets.proto import tf_example_pb2

FRAMES = 30
SIDE = 64
FPS = 10.0
_HEADER, _FOOTER = 12, 4  # bytes


class RecordError(ValueError):
    """A file or record is truncated or has another format."""


def offsets(path: pathlib.Path) -> list[int]:
    """Return the byte offset of each record. A truncated record is listed; reading it raises."""
    found, position, size = [], 0, path.stat().st_size
    with open(path, 'rb') as file:
        while position < size:
            found.append(position)
            file.seek(position)
            header = file.read(_HEADER)
            if len(header) < _HEADER:
                break
            position += _HEADER + struct.unpack('<Q', header[:8])[0] + _FOOTER
    return found


def read_trajectory(path: pathlib.Path, offset: int) -> np.ndarray:
    """Read the frames of camera aux1, uint8 [30,64,64,3] RGB.

    Raises:
      RecordError: the record is truncated or not a trajectory.
    """
    with open(path, 'rb') as file:
        file.seek(offset)
        header = file.read(_HEADER)
        length = struct.unpack('<Q', header[:8])[0] if len(header) == _HEADER else 0
        # Not `read(length)`, because a damaged length can exceed the memory.
        if not 0 < length <= path.stat().st_size - offset - _HEADER - _FOOTER:
            raise RecordError('the record is cut off')
        content = file.read(length)
    try:
        features = tf_example_pb2.Example.FromString(content).features.feature
    except DecodeError as error:
        raise RecordError('the record is not a protocol buffer') from error
    frames = []
    for number in range(FRAMES):
        values = features[f'{number}/image_aux1/encoded'].bytes_list.value
        if len(values) != 1 or len(values[0]) != SIDE * SIDE * 3:
            raise RecordError(f'frame {number} is not one image of {SIDE}x{SIDE}x3 bytes')
        frames.append(np.frombuffer(values[0], np.uint8).reshape(SIDE, SIDE, 3))
    return np.stack(frames)
