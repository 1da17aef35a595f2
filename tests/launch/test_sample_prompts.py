"""launch.sample_prompts and the prompts of launch.sample: the list of images, and real runs of a model with text."""

import json

import numpy as np
import pytest
from PIL import Image

import magi_jax
from launch.image_prompts import MAX_BYTES, read_entries, read_pairs
from magi_jax.config import ConfigError
from magi_jax.data.video_file import read_video
from tests.launch.commands import assert_one_line, module
from tests.launch.forked import run_forked
from tests.pretrained.tiny_run import VIDEOMAR, make_run

DISC, SQUARE = 'a red disc moves up', 'a blue square rests'
FRAMES = 3


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videomar') / 'run'
    make_run(folder, VIDEOMAR)
    return folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """A folder of two images whose names are prompts, and of a file that is no image."""
    folder = tmp_path_factory.mktemp('images')
    for name, colour in ((f'{DISC}.png', (255, 40, 40)), (f'{SQUARE}.JPG', (40, 40, 255))):
        picture = np.zeros((24, 32, 3), np.uint8)
        picture[4:20, 8:24] = colour
        Image.fromarray(picture).save(folder / name)
    (folder / 'notes.txt').write_text('no image')
    return folder


@pytest.fixture
def sample(environment, workdir, tmp_path):
    def sample(name, *arguments, frames=FRAMES):
        fixed = [f'--workdir={workdir}', f'--out={tmp_path / "out"}', f'--frames={frames}']
        return run_forked([*module(name), *fixed, *map(str, arguments)], environment)

    return sample


def written(folder, content):
    (folder / 'prompts.json').write_text(content)
    return str(folder / 'prompts.json')


def test_names_of_images_are_their_prompts(images):
    assert read_pairs(images, '') == [(images / f'{SQUARE}.JPG', SQUARE), (images / f'{DISC}.png', DISC)]


def test_the_list_of_vbench_and_lines_are_read_and_pairs_are_kept_once(images, tmp_path):
    pairs = [(images / f'{DISC}.png', 'it moves'), (images / f'{SQUARE}.JPG', 'it rests')]
    entries = [
        {'prompt_en': prompt, 'image_name': image.name, 'dimension': [dimension]}
        for dimension in ('i2v_subject', 'i2v_background')
        for image, prompt in pairs
    ]
    assert read_pairs(images, written(tmp_path, '\n ' + json.dumps(entries, indent=1))) == pairs
    lines = [json.dumps({'image': image.name, 'prompt': prompt}) for image, prompt in pairs]
    assert read_pairs(images, written(tmp_path, '\n\n'.join(lines) + '\n\n')) == pairs


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('[{"image": "a.png"', 'prompts.json is not JSON .*: give a list or lines of image and prompt'),
        ('a red disc', 'is not JSON'),
        (b'\xff\xd8\xff', 'is not JSON'),
        ('', 'is no list of objects: give objects with the keys image and prompt'),
        ('[]', 'is no list of objects'),
        ('["a red disc"]', 'is no list of objects'),
        ('{"image": "IMAGE", "prompt": "it"}\n3', 'is no list of objects'),
        ('{"image": "IMAGE"}', 'entry 1 of .*prompts.json has no image and prompt: give the keys'),
        ('{"image": "IMAGE", "prompt_en": "it"}', 'entry 1 of .* has no image and prompt'),
        ('{"image": "IMAGE", "prompt": "it"}\n{"image": "IMAGE", "prompt": null}', 'entry 2 of .* has no image and'),
        ('{"image": "none.png", "prompt": "it"}', 'entry 1 .*: there is no image .*none.png: correct --images or'),
        ('{"image": "IMAGE", "prompt": " "}', 'entry 1 .*: the prompt is empty: describe the video'),
        ('{"image": "IMAGE", "prompt": "on/off"}', 'entry 1 .*: the prompt is no file name: .* without /'),
        (json.dumps({'image': 'IMAGE', 'prompt': (MAX_BYTES + 1) * 'a'}), f'at most {MAX_BYTES} bytes'),
        (json.dumps({'image': 'IMAGE', 'prompt': (MAX_BYTES // 2 + 1) * 'é'}), f'at most {MAX_BYTES} bytes'),
        (
            '{"image": "IMAGE", "prompt": "it"}\n{"image": "notes.txt", "prompt": "it"}',
            "moves up.png and notes.txt have the same prompt 'it', which names their videos: change one of them",
        ),
    ],
)
def test_mistakes_in_the_list_are_one_line(images, tmp_path, content, message):
    content = content if isinstance(content, bytes) else content.replace('IMAGE', f'{DISC}.png').encode()
    (tmp_path / 'prompts.json').write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_pairs(images, str(tmp_path / 'prompts.json'))
    assert '\n' not in str(error.value)


def test_a_missing_list_and_a_folder_without_images_are_named(tmp_path):
    with pytest.raises(ConfigError, match='there is no file .*none.json: give the JSON file of images and prompts'):
        read_entries(str(tmp_path / 'none.json'))
    for folder in (tmp_path, tmp_path / 'none'):
        with pytest.raises(ConfigError, match=f'{folder} holds no images: give a folder with .jpg, .jpeg, .png, .webp'):
            read_pairs(folder, '')


def test_two_images_of_one_name_are_refused(images, tmp_path):
    for suffix in ('png', 'jpg'):
        (tmp_path / f'disc.{suffix}').write_bytes((images / f'{DISC}.png').read_bytes())
    with pytest.raises(ConfigError, match="disc.jpg and disc.png have the same prompt 'disc'"):
        read_pairs(tmp_path, '')


def test_videos_are_named_by_prompt_and_number_and_kept(sample, images, workdir, tmp_path):
    longest = MAX_BYTES * 'a'  # its video must be writable too
    entries = [{'image': f'{DISC}.png', 'prompt': DISC}, {'image': f'{SQUARE}.JPG', 'prompt': longest}]
    listed = [f'--images={images}', '--num=2', f'--prompts={written(tmp_path, json.dumps(entries))}']
    result, folder = sample('launch.sample_prompts', *listed), tmp_path / 'out'
    assert result.returncode == 0 and f'4 videos are in {folder}' in result.stdout, result.stderr
    names = [f'{prompt}-{number}.mp4' for prompt in (DISC, longest) for number in range(2)]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, 'settings.json'])
    videos = [read_video(folder / name).astype(int) for name in names]
    assert all(video.shape == (FRAMES, 16, 16, 3) for video in videos)
    first = read_video(images / f'{DISC}.png', 16, 16)
    expected = magi_jax.load(workdir).sample(np.stack(2 * [first]), FRAMES, prompt=DISC, numbers=[0, 1], progress=False)
    for video, own, other in zip(videos, expected, expected[::-1]):
        assert abs(video[0] - first[0]).mean() < 12  # mp4 halves the resolution of colours
        grey, own, other = (frames.mean(axis=-1) for frames in (video, own, other))
        assert abs(grey - own).mean() < 0.5 * abs(grey - other).mean()

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    lost = folder / names[3]
    lost.unlink()
    resumed = sample('launch.sample_prompts', *listed)
    assert resumed.returncode == 0, resumed.stderr
    assert lost.read_bytes() == before[lost][1]
    kept = [folder / name for name in names[:3]]
    assert [path.stat().st_mtime_ns for path in kept] == [before[path][0] for path in kept]
    for other in ('--seed=1', '--num=3'):
        words = f'{folder} holds videos sampled with {other[2:5]}', 'give another --out'
        assert_one_line(sample('launch.sample_prompts', *listed, other), *words)


@pytest.mark.slow
def test_a_prompt_an_image_and_a_size(sample, images, tmp_path):
    context = images / f'{DISC}.png'
    result = sample('launch.sample', f'--prompt={DISC}', f'--context={context}', '--size=8,24', '--num=2')
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / 'out/videos.npz') as file:
        videos, settings = file['videos'], json.loads(str(file['settings']))
    assert videos.shape == (2, FRAMES, 8, 24, 3) and (videos[:, :1] == read_video(context, 8, 24)).all()
    assert settings['prompt'] == DISC and settings['size'] == ['8', '24']


@pytest.mark.slow
def test_another_prompt_does_not_go_on_in_the_same_folder(sample, tmp_path):
    assert sample('launch.sample', f'--prompt={DISC}', '--batch=1').returncode == 0
    said = f'{tmp_path / "out"} holds videos sampled with prompt = {DISC!r}, not {SQUARE!r}: give another --out'
    assert_one_line(sample('launch.sample', f'--prompt={SQUARE}', '--batch=1'), said)
    assert_one_line(sample('launch.sample', f'--prompt={DISC}', '--batch=1', '--size=8,24'), 'with size = None, not')


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--size=8'], '--size=8 is not HEIGHT,WIDTH: give two whole numbers, as in 96,96'),
        (['--size=8x24'], '--size=8x24 is not HEIGHT,WIDTH'),
        (['--size=8,-24'], '--size=8,-24 is not HEIGHT,WIDTH'),
        (['--size=20,16'], 'latents of 5x4 cannot be cut into patches'),
        (['--prompt='], "the text '' has no words: give at least one"),
    ],
)
def test_mistakes_are_one_line(sample, tmp_path, arguments, words):
    assert_one_line(sample('launch.sample', *arguments), words)
    assert not (tmp_path / 'out').exists()
