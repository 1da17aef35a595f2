"""A result of an earlier call is not overwritten."""

import pytest

from launch import console
from magi_jax.config import ConfigError


def test_a_file_that_exists_is_refused_before_anything_is_measured(tmp_path):
    console.check_new(tmp_path / 'a.json', tmp_path / 'b.json')
    (tmp_path / 'b.json').touch()
    with pytest.raises(ConfigError, match=r'b\.json exists already: name another file, or remove it'):
        console.check_new(tmp_path / 'a.json', tmp_path / 'b.json')


def test_results_of_one_name_are_numbered(tmp_path):
    for expected in ('a.b.json', 'a.b_2.json', 'a.b_3.json'):
        path = console.unused_path(tmp_path / 'a.b.json')
        assert path.name == expected
        path.touch()
