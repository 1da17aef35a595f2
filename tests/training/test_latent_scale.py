"""What launch.measure_statistics does: from a converted tokenizer without a scale to one that training takes."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from magi_jax.config import ConfigError, DataConfig, MagiConfig
from magi_jax.data.pipeline import train_batches
from magi_jax.data.video_file import write_mp4
from magi_jax.tokenizers.folder import NOT_MEASURED, load_tokenizer, open_tokenizer, read_statistics, save_tokenizer
from magi_jax.tokenizers.pixels import to_float
from magi_jax.training.latent_scale import measure_scale
from tests.tokenizers import toy


def test_a_scale_is_measured_once_and_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'videos' / 'train').mkdir(parents=True)
    for number in range(3):
        clip = np.random.default_rng(number).integers(0, 256, (9, 32, 32, 3), np.uint8)
        write_mp4(tmp_path / 'videos' / 'train' / f'{number}.mp4', clip, 8)
    unmeasured = toy.install(monkeypatch).replace(latent_mean=jnp.zeros(3), latent_std=jnp.ones(3))
    save_tokenizer(unmeasured, tmp_path / 'toy', {'statistics': NOT_MEASURED, 'source_sha256': 'abc'})
    tokenizer = dataclasses.replace(toy.CONFIG, path=str(tmp_path / 'toy'))
    with pytest.raises(ConfigError, match='run python -m launch.measure_statistics'):
        open_tokenizer(tokenizer, 32, 32)
    data = DataConfig(
        source='video_folder', path=str(tmp_path / 'videos'), height=32, width=32, frames=5, batch_size=4, threads=0
    )
    mean, std = measure_scale(MagiConfig(data=data, tokenizer=tokenizer), 7, lambda videos, total: videos)
    batches = train_batches(data, 0)
    video = np.concatenate([next(batches)['video'] for _ in range(2)])
    batches.close()
    latents, log_variance = unmeasured.moments(to_float(video))
    np.testing.assert_allclose(mean, np.mean(latents, (0, 1, 2, 3)), atol=1e-5)
    expected = np.sqrt(np.var(latents, (0, 1, 2, 3)) + np.exp(log_variance).mean((0, 1, 2, 3)))
    np.testing.assert_allclose(std, expected, rtol=1e-5)
    np.testing.assert_array_equal(open_tokenizer(tokenizer, 32, 32).latent_std, std)
    told = read_statistics(tmp_path / 'toy')
    assert (told['statistics'], told['clips'], told['source_sha256']) == ('measured', 8, 'abc')
    own = dataclasses.replace(load_tokenizer(tmp_path / 'toy').config, kind='autoencoder_kl')
    save_tokenizer(unmeasured.replace(config=own), tmp_path / 'own', {})
    with pytest.raises(ConfigError, match='is already known'):
        own = dataclasses.replace(own, path=str(tmp_path / 'own'))
        measure_scale(MagiConfig(data=data, tokenizer=own), 7, lambda videos, total: videos)
