"""Networks that compute features, and names of metrics that identify the weights behind a score.

The published Fréchet video distance (FVD) belongs to one set of weights, which this code does not include. Only these
weights may use that name: an `Extractor` named FVD needs a file from the user, and its SHA-256.

Dimension key: B clips, T frames, S time slots, D feature width.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from magi_jax.config import ConfigError
from magi_jax.data.builders import bouncing_objects as bouncing
from magi_jax.evaluation import classifier, i3d
from magi_jax.parallel.hosts import equal_batches, gather_to_hosts, replicate, shard
from magi_jax.parallel.mesh import batch_sharding

RESERVED = 'fvd'
VARIANTS = {'i3d-tf400': (1e-3, 'tf1'), 'i3d-videogpt': (1e-5, 'torch-crop')}  # name -> (batch norm epsilon, resize)
FVD_WEIGHTS_NEEDED = (
    'the Fréchet video distance needs the weights of I3D, which do not come with this code: give the file with '
    '--weights, and the SHA-256 that its source states with --weights_sha256. The file is i3d_pretrained_400.pt of '
    'VideoGPT, or a .npz with the 230 variables of TF-Hub deepmind/i3d-kinetics-400/1 by name '
    '(tf.train.load_checkpoint reads them). Without it, use a protocol of the embedded classifier'
)


@dataclasses.dataclass(frozen=True)
class VerifiedFile:
    """A file whose content has the SHA-256 that its user stated.

    Raises:
      ConfigError: the file has another SHA-256.
      OSError: the file cannot be read.
    """

    path: str
    sha256: str

    def __post_init__(self):
        with open(self.path, 'rb') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
        if found != self.sha256.lower():
            raise ConfigError(f'{self.path} has SHA-256 {found}, not {self.sha256}: give another file')


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A frozen network.

    Attributes:
      metric: name of the Fréchet distance of its features, without the number of clips.
      label: name in tables and charts.
      sha256: hash of the weights.
      settings: further settings that determine the features.
      window: number of frames of one input; None for any number.
      min_frames: smallest number of frames of an input.
      network: function (variables, uint8 [B,T,H,W,3]) -> features float32 [B,S,D].
      variables: weights.
      batch: per-device batch size. It is fixed, so that the features of a clip depend neither on the number of clips
        nor on that of devices.
      weights: file of the weights, if the name of the metric requires one.
    """

    metric: str
    label: str
    sha256: str
    settings: dict[str, Any]
    window: int | None
    network: Callable[[Any, jax.Array], jax.Array]
    variables: Any
    batch: int
    weights: VerifiedFile | None = None
    min_frames: int = 1

    def __post_init__(self):
        if RESERVED in self.metric.lower() and (self.weights is None or self.weights.sha256.lower() != self.sha256):
            raise ConfigError(FVD_WEIGHTS_NEEDED)

    def check_frames(self, frames: int) -> None:
        """Raise ConfigError if clips of `frames` frames are too short for the network."""
        if frames < self.min_frames:
            raise ConfigError(
                f'clips of {frames} frames are too short for {self.label}: use --frames of at least {self.min_frames}'
            )

    def on(self, mesh: Mesh) -> Callable[[np.ndarray], np.ndarray]:
        """Return the function uint8 [B,T,H,W,3] -> float32 [B,S,D].

        The devices of the mesh share the work. Every host gets all features.
        """
        sharding = batch_sharding(mesh)
        network = jax.jit(self.network, out_shardings=sharding)
        variables = replicate(mesh, self.variables)

        def features(video: np.ndarray) -> np.ndarray:
            self.check_frames(video.shape[1])
            parts = (video[rows] for rows in equal_batches(mesh, len(video), self.batch))
            results = [gather_to_hosts(network(variables, shard(sharding, part))) for part in parts]
            return np.concatenate(results)[: len(video)]

        return features


def make_extractor(name: str, dataset: str, weights: VerifiedFile | None = None) -> Extractor:
    """Return the network of a protocol.

    Args:
      name: name in `protocols.Extractor`.
      dataset: dataset of the protocol, which selects the embedded classifier.
      weights: weights of I3D.

    Raises:
      ConfigError: the file of I3D is missing or has other weights, or the classifier is missing or too inaccurate.
    """
    if name == 'classifier':
        return _embedded(dataset.partition('/')[2])
    if weights is None:
        raise ConfigError(FVD_WEIGHTS_NEEDED)
    variables, report = i3d.read_weights(weights.path)
    bn_eps, resize = VARIANTS[name]
    sha256 = weights.sha256.lower()
    return Extractor(
        metric=f'{RESERVED}/{name}/bn{bn_eps:.0e}/resize-{resize}/cov-n-1/{sha256[:8]}'.replace('e-0', 'e-'),
        label='FVD (I3D, Kinetics-400)',
        sha256=sha256,
        settings={'bn_eps': bn_eps, 'resize': resize, 'layout': report.layout},
        window=None,
        network=functools.partial(_i3d_features, bn_eps, resize),
        variables=variables,
        batch=4,
        weights=weights,
        min_frames=i3d.MIN_FRAMES,
    )


def _embedded(kind: str) -> Extractor:
    trained = classifier.load_classifier(kind)
    version = bouncing.BouncingObjects.VERSION
    return Extractor(
        metric=f'clf_fd/bouncing_{kind}-{version}/{trained.sha256[:8]}',
        label='ClfFD (embedded classifier, NOT FVD)',
        sha256=trained.sha256,
        settings={'accuracies': trained.accuracies},
        window=classifier.FRAMES,
        network=functools.partial(_classifier_features, kind),
        variables=trained.params,
        batch=8,
        min_frames=classifier.FRAMES,
    )


def _i3d_features(bn_eps: float, resize: i3d.Resize, variables: Any, video: jax.Array) -> jax.Array:
    return i3d.I3D(bn_eps).apply(variables, i3d.to_input(video, resize))[:, None]


def _classifier_features(kind: str, params: Any, video: jax.Array) -> jax.Array:
    return classifier.Classifier(kind).apply({'params': params}, video, method='features')
