"""The state that the video sampler carries from frame to frame.

Dimension key: B clips, W frame slots of the window, N tokens of a frame, C token width.
"""

import flax.struct
import jax

from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import CLIPS, COPIED, SITES


@flax.struct.dataclass
class VideoState:
    """All inputs of the next frame besides the weights.

    Attributes:
      cache: keys and values of the finished frames in the window, capacity W.
      window: tokens of these frames as the model observed them, in the slots of the cache, float32 [B, W, N, C].
      positions: temporal position of each slot in the trained table, float32 [W].
      interval: frame interval in raw frames, int32 [B].
      clip_keys: keys [B], one per clip, so that a clip does not depend on its batch.
      frame: number of the next frame in the video, int32 scalar.
      context: number of context frames, int32 scalar.
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
