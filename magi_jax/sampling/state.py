"""The state that the video sampler carries from frame to frame.

Dimension key: B clips, W frame slots of the window, N tokens of a frame, C token width.
"""

import flax.struct
import jax

from magi_jax.layers.kv_cache import KVCache
from magi_jax.layers.layout import CACHED, CLIPS, COPIED
from magi_jax.models.conditions import Conditions


@flax.struct.dataclass
class VideoState:
    """All inputs of the next frame besides the weights.

    Attributes:
      cache: keys and values of the finished frames in the window, capacity W. If guidance moves away from text, its
        clips are [with text, without].
      window: tokens of these frames as the model observed them, in the slots of the cache, float32 [B, W, N, C].
      positions: temporal position of each slot, float32 [W].
      conditions: conditions of the clips, as many as in the cache.
      clip_keys: keys [B], one per clip, so that a clip does not depend on its batch.
      frame: number of the next frame in the video, int32 scalar.
      context: number of context frames, int32 scalar.
      frames: number of frames of the video, int32 scalar.
    """

    cache: KVCache
    window: jax.Array
    positions: jax.Array
    conditions: Conditions
    clip_keys: jax.Array
    frame: jax.Array
    context: jax.Array
    frames: jax.Array


STATE_LAYOUT = VideoState(
    cache=KVCache(k=CACHED, v=CACHED, length=COPIED),
    window=CLIPS,
    positions=COPIED,
    conditions=CLIPS,
    clip_keys=CLIPS,
    frame=COPIED,
    context=COPIED,
    frames=COPIED,
)
