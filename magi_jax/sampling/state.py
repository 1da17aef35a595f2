"""What the video sampler carries from frame to frame.

Dimension key: B clips, W frame slots of the window, N tokens of a frame, C token width.
"""

import flax.struct
import jax

from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import CLIPS, COPIED, SITES


@flax.struct.dataclass
class VideoState:
    """Everything that the next frame depends on.

    Attributes:
      cache: keys and values of the finished frames in the window, capacity W.
      window: float32 [B, W, N, C], their tokens as the model observed them, in the cache's slots.
      positions: float32 [W], temporal position of each slot in the trained table.
      interval: int32 [B], raw frames between two frames.
      clip_keys: [B] keys, one a clip: a clip's video does not depend on the batch it is drawn in.
      frame: int32 scalar, number of the next frame in the video.
      context: int32 scalar, number of frames that were given, not generated.
    """

    cache: KVCache
    window: jax.Array
    positions: jax.Array
    interval: jax.Array
    clip_keys: jax.Array
    frame: jax.Array
    context: jax.Array


STATE_LAYOUT = VideoState(
    cache=KVCache(k=SITES, v=SITES, length=COPIED),
    window=CLIPS,
    positions=COPIED,
    interval=CLIPS,
    clip_keys=CLIPS,
    frame=COPIED,
    context=COPIED,
)
