"""Protocols say all that a number depends on, real clips are theirs, and one name is kept for verified weights."""

import ast
import dataclasses
import hashlib
import pathlib

import jax
import numpy as np
import pytest

from magi_jax.config import ConfigError, DataConfig, MeshConfig
from magi_jax.data import sources
from magi_jax.data.transforms import clip_indices
from magi_jax.evaluation import extractors, real_clips
from magi_jax.evaluation.extractors import Extractor, VerifiedFile, make_extractor
from magi_jax.evaluation.protocols import OLDER_NAMES, PROTOCOLS, Distances, explained, find_protocol, spelling
from magi_jax.evaluation.real_clips import SETS, RealClips
from magi_jax.parallel.mesh import make_mesh
from tests.evaluation.i3d_weights import torch_weights

ROOT = pathlib.Path(__file__).parents[2]
DISTANCES = {name: protocol for name, protocol in PROTOCOLS.items() if isinstance(protocol, Distances)}
PUBLISHED = {name: protocol for name, protocol in DISTANCES.items() if protocol.extractor != 'classifier'}
UCF101 = PROTOCOLS['ucf101_unconditional']


@pytest.mark.parametrize(
    ('name', 'clips', 'frames', 'interval', 'context', 'side'),
    [
        ('ucf101_unconditional', 2048, 16, 3, 0, 256),
        ('ucf101_first_frame', 2048, 16, 3, 1, 256),
        ('kinetics600_five_frame_64px', 50_000, 16, 1, 5, 64),
        ('kinetics600_five_frame_64px_17_frames', 50_000, 17, 1, 5, 64),
        ('kinetics600_five_frame_128px', 50_000, 16, 1, 5, 128),
        ('kinetics600_five_frame_128px_17_frames', 50_000, 17, 1, 5, 128),
        ('magvit_ucf101', 10_000, 16, 1, 0, 128),
        ('shapes_first_frame', 2048, 16, 1, 1, 64),
    ],
)
def test_what_the_names_stand_for(name, clips, frames, interval, context, side):
    found = find_protocol(name)
    assert (found.clips, found.frames, found.interval, found.context, found.side) == (
        clips,
        frames,
        interval,
        context,
        side,
    )


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match='there is no protocol ucf_101: choose one of .*ucf101_first_frame'):
        find_protocol('ucf_101')


@pytest.mark.parametrize(
    ('older', 'name', 'clips', 'seeds'),
    [
        ('shapes_five_frame_quick', 'shapes_five_frame --clips 512 --seeds 2', 512, 2),
        ('shapes_five_frame_runlocal', 'shapes_five_frame --clips 6 --seeds 2', 6, 2),
        ('shapes_first_frame_study', 'shapes_first_frame --clips 512 --seeds 1', 512, 1),
        ('shapes_first_frame_long_study', 'shapes_first_frame_long --clips 128', 128, 1),
        ('ucf101_first_frame_videogpt', 'ucf101_first_frame --i3d videogpt', 2048, 4),
        ('magvit_kinetics600_videogpt', 'magvit_kinetics600 --i3d videogpt', 50_000, 4),
        (
            'kinetics600_five_frame_64px_17_frames_videogpt',
            'kinetics600_five_frame_64px --frames 17 --i3d videogpt',
            50_000,
            1,
        ),
    ],
)
def test_older_full_names_stand_for_base_names_with_flags(older, name, clips, seeds):
    found = find_protocol(older)
    assert (found.clips, found.seeds, spelling(older)) == (clips, seeds, name)
    base, *flags = name.split()
    fields = {'--clips': 'clips', '--seeds': 'seeds', '--frames': 'frames', '--i3d': 'extractor'}
    changes = {fields[flag]: f'i3d-{value}' if flag == '--i3d' else int(value) for flag, value in pairwise(flags)}
    assert find_protocol(base, **changes) == found and spelling(base, **changes) == name


def pairwise(flags):
    return zip(flags[::2], flags[1::2], strict=True)


def test_every_name_of_earlier_versions_is_known():
    assert len(OLDER_NAMES) + len(PROTOCOLS) == 38 + 2  # continuation and captions_text are new
    assert all(find_protocol(name) for name in OLDER_NAMES)
    assert find_protocol('bouncing_shapes_runlocal').long_frames == 12


def test_help_explains_every_base_name_in_a_line():
    assert [line.split(': ')[0] for line in explained().splitlines()] == [f'* {name}' for name in PROTOCOLS]


@pytest.mark.parametrize(
    ('name', 'changes', 'complaint'),
    [
        ('bouncing_shapes', {'seeds': 2}, 'has no flag --seeds: choose one of --clips, --frames, --long_clips, '),
        ('shapes_five_frame', {'context': 2}, 'has no flag --context_frames: choose one of --clips'),
        ('shapes_five_frame', {'clips': 1}, '--clips 1 is too few: use --clips 2 or more; .* --protocol continuation'),
        ('shapes_five_frame', {'frames': 5}, '--frames 5 leaves nothing to generate after 5 context frames'),
        ('shapes_five_frame', {'extractor': 'i3d-videogpt'}, 'has no flag --i3d'),
        ('bouncing_shapes', {'long_frames': 4}, '--long_frames 4 leaves nothing'),
        ('continuation', {'frames': 3, 'context': 3}, 'use --frames 4 or more'),
    ],
)
def test_changes_that_do_not_fit_are_refused(name, changes, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        find_protocol(name, **changes)
    assert '\n' not in str(error.value)


def test_a_run_that_does_not_fit():
    UCF101.check('u', 'ucf101/split1', (256, 256), 3)
    for source, size, interval, complaint in [
        ('ucf1010', (256, 256), 25, 'needs a run on ucf101 or video_folder, not on ucf1010'),
        ('ucf101/split1', (256, 128), 25, 'needs 256x256 frames, but the run has 256x128'),
        ('ucf101/split1', (256, 256), 2, 'interval 3, but data.max_interval of the run is 2'),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            UCF101.check('u', source, size, interval)


class Counting:
    """Videos whose frame i has the value i; every fourth is too short for 16 frames at interval 3."""

    lengths = np.asarray([46, 200, 100, 45] * 10)

    def __getitem__(self, index):
        def read(indices):
            return np.broadcast_to(np.uint8(indices)[:, None, None, None], (len(indices), 2, 3, 3))

        return sources.Video(str(index), int(self.lengths[index]), read, {})


@pytest.fixture
def ucf101(monkeypatch):
    monkeypatch.setattr(real_clips.sources, 'open_source', lambda data, split: Counting())
    return lambda clips: RealClips(DataConfig(source='ucf101/split1'), dataclasses.replace(UCF101, clips=clips))


def test_real_clips_are_evenly_spaced_and_start_anywhere(ucf101):
    clips = ucf101(15).read('reference', range(15))[..., 0, 0, 0].astype(int)
    assert (clips == np.stack([clip_indices(clip[0], 16, 3) for clip in clips])).all()
    assert len(set(clips[:, 0])) > 5


def test_sets_share_no_video_while_there_are_enough(ucf101):
    few, many = ucf101(15), ucf101(16)
    assert not few.repeats and many.repeats
    numbers = {name: {int(number) for number in few._chosen[name][0]} for name in SETS}
    assert len(numbers['reference']) == len(numbers['others']) == 15
    assert not numbers['reference'] & numbers['others']
    assert not {number for number in numbers['reference'] | numbers['others'] if number % 4 == 3}  # too short


def test_embedded_clips_are_of_the_test_split_and_the_same_every_time():
    protocol = dataclasses.replace(PROTOCOLS['shapes_five_frame'], clips=3)
    first, again = (RealClips(DataConfig(), protocol) for _ in range(2))
    for name in SETS:
        assert (first.read(name, range(3)) == again.read(name, range(3))).all()
    made = real_clips.bouncing.make_video('shapes', 'test', int(first._chosen['others'][0][2]))['frames']
    start = first._chosen['others'][1][2]
    assert (first.read('others', [2])[0] == made[start : start + 16]).all()


def test_too_long_clips_are_refused(ucf101):
    with pytest.raises(ConfigError, match='no video has 298 frames'):
        RealClips(DataConfig(source='ucf101'), dataclasses.replace(UCF101, frames=100))


@pytest.mark.parametrize('name', PUBLISHED)
def test_without_weights_published_distances_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match='--weights') as error:
        make_extractor(PUBLISHED[name].extractor, PUBLISHED[name].dataset)
    assert '\n' not in str(error.value) and 'i3d_pretrained_400.pt' in str(error.value)


def _extractor(metric, sha256, weights=None):
    return Extractor(metric, '', sha256, {}, None, lambda variables, video: video, None, 1, weights)


@pytest.mark.parametrize('metric', ['fvd', 'fvd/x', 'FVD/x', 'my_fvd'])
def test_nothing_else_takes_the_reserved_name(metric, tmp_path):
    (tmp_path / 'a').write_bytes(b'weights')
    digest = hashlib.sha256(b'weights').hexdigest()
    with pytest.raises(ConfigError, match='--weights'):
        _extractor(metric, digest)
    file = VerifiedFile(str(tmp_path / 'a'), digest)
    with pytest.raises(ConfigError, match='--weights'):
        _extractor(metric, 'f' * 64, file)  # other weights than those of the file
    with pytest.raises(ConfigError, match='does not fit|no safetensors'):
        make_extractor('i3d-tf400', 'UCF-101', file)
    with pytest.raises(ConfigError, match=f'has SHA-256 {digest}, not 00'):
        VerifiedFile(str(tmp_path / 'a'), '00')


def test_no_other_code_spells_the_reserved_name():
    """Only extractors.py builds names from it, and it does so once."""
    found = []
    for path in [*(ROOT / 'magi_jax').rglob('*.py'), *(ROOT / 'launch').rglob('*.py')]:
        for node in ast.walk(ast.parse(path.read_text())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ''
            if text.lower().startswith(extractors.RESERVED + '/') or text.lower() == extractors.RESERVED:
                found.append(path.name)
    assert found == ['extractors.py']


def test_verified_weights_earn_the_name(tmp_path, monkeypatch):
    (tmp_path / 'i3d.pt').write_bytes(b'as published')
    file = VerifiedFile(str(tmp_path / 'i3d.pt'), hashlib.sha256(b'as published').hexdigest().upper())
    monkeypatch.setattr(extractors.i3d.checkpoint_files, 'open_weights', lambda source: torch_weights())
    tensorflow, videogpt = (make_extractor(name, 'UCF-101', file) for name in ('i3d-tf400', 'i3d-videogpt'))
    sha8 = hashlib.sha256(b'as published').hexdigest()[:8]
    assert tensorflow.metric == f'fvd/i3d-tf400/bn1e-3/resize-tf1/cov-n-1/{sha8}'
    assert videogpt.metric == f'fvd/i3d-videogpt/bn1e-5/resize-torch-crop/cov-n-1/{sha8}'
    with pytest.raises(ConfigError, match='8 frames are too short for FVD .*: use --frames of at least 9'):
        tensorflow.check_frames(8)


def test_clips_too_short_for_a_network_are_refused_before_it_sees_them():
    embedded = make_extractor('classifier', 'bouncing_objects/shapes')
    features = embedded.on(make_mesh(MeshConfig(data=1), jax.devices()[:1]))
    with pytest.raises(ConfigError, match='15 frames are too short .*: use --frames of at least 16'):
        features(np.zeros((1, 15, 64, 64, 3), np.uint8))
