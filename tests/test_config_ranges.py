"""Every number of a config is refused in one line, or a run can start with it: nothing is found out after minutes."""

import dataclasses
import math
import time
import typing

import pytest

from configs import quickstart, quickstart_videomar
from magi_jax import config as schema
from magi_jax.config import SYSTEMS, ConfigError, MagiSamplerConfig, from_config_dict, override, replace_fields
from magi_jax.config_checks import check_config, check_sampler
from magi_jax.fields import Range
from magi_jax.parallel.mesh import make_mesh
from magi_jax.training.lowering import abstract_tokenizer, trace_next_frame, trace_train_step

LOCAL = {
    'magi': from_config_dict(quickstart.get_config('runlocal')),
    'videomar': from_config_dict(quickstart_videomar.get_config('runlocal')),
}
VALUES = (0, -1, math.nan, math.inf, -math.inf, 10**30, 10**400, 1e30, 1e308)
SECONDS = 10  # of the processor, to an answer


def numeric_fields(cls, path=()):
    """{path of field names: its annotation}, of ints, floats and tuples of numbers."""
    found = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        kind = hint.__origin__ if typing.get_origin(hint) is typing.Annotated else hint
        if dataclasses.is_dataclass(kind):
            found |= numeric_fields(kind, (*path, name))
        elif kind in (int, float) or typing.get_origin(kind) is tuple:
            found[*path, name] = hint
    return found


FIELDS = {name: numeric_fields(cls) for name, cls in SYSTEMS.items()}


def changed(system, path, value):
    """The local quickstart of a system with one field set, not checked."""
    values = dataclasses.asdict(LOCAL[system])
    group = values
    for name in path[:-1]:
        group = group[name]
    is_tuple = typing.get_origin(FIELDS[system][path].__origin__) is tuple
    group[path[-1]] = (value,) * max(1, len(group[path[-1]])) if is_tuple else value
    return values


def start(values):
    """What every command does first: the checked config, or the refusal."""
    config = from_config_dict(values)
    check_config(config)
    return config


def outcomes(system):
    """(path, value, config or None if it is refused, seconds) of all fields and values."""
    for path in FIELDS[system]:
        for value in VALUES:
            began = time.process_time()
            try:
                config = start(changed(system, path, value))
            except ConfigError as error:
                assert '\n' not in str(error) and path[-1] in str(error) and ': ' in str(error), error
                config = None
            yield path, value, config, time.process_time() - began


@pytest.mark.parametrize('system', SYSTEMS)
def test_every_number_declares_its_range(system):
    fields = FIELDS[system]
    assert len(fields) > 60
    undeclared = [path for path, hint in fields.items() if not any(isinstance(rule, Range) for rule in _rules(hint))]
    assert undeclared == []


def _rules(hint):
    return getattr(hint, '__metadata__', ())


@pytest.mark.parametrize('system', SYSTEMS)
def test_no_number_ends_in_a_traceback_or_takes_long(system):
    found = list(outcomes(system))
    refused, longest = sum(config is None for _, _, config, _ in found), max(seconds for *_, seconds in found)
    fields = f'{len(FIELDS[system])} fields x {len(VALUES)} values'
    print(f'{fields}: {refused} of {len(found)} refused, at most {longest:.3f} s')
    assert longest < SECONDS and refused > len(found) / 2
    for path, value, config, _ in found:
        endless = value == math.inf and path[-1] in ('x0_clip', 'clip_norm', 'token_clip')
        assert config is None or endless or value in (0, -1, 1e30, 10**30)


@pytest.mark.slow
@pytest.mark.parametrize('system', SYSTEMS)
def test_a_run_can_start_with_every_number_that_is_not_refused(system):
    """Traces the training step and the sampler with each, which is all that can fail before devices compute."""
    traced, longest, late = 0, 0.0, 0
    for _, _, config, _ in outcomes(system):
        if config is None:
            continue
        began = time.process_time()
        try:
            mesh = make_mesh(config.mesh)
            tokenizer = abstract_tokenizer(config)
            trace_train_step(config, mesh, tokenizer)
            trace_next_frame(config, mesh, tokenizer, mesh.size, config.data.frames)
        except ConfigError as error:
            assert '\n' not in str(error)
            late += 1
        traced, longest = traced + 1, max(longest, time.process_time() - began)
    print(f'{traced} accepted values traced, {late} of them refused then, at most {longest:.1f} s')
    assert longest < SECONDS


def test_sampler_fields_given_as_text_are_checked_too():
    for text in ('denoise_steps=0', 'mask_steps=0', 'temperature=nan', 'temperature=NaN', 'temperature=-1', 'start=0'):
        with pytest.raises(ConfigError, match=rf'{text.split("=")[0]} = \S+ is out of range: choose'):
            override(MagiSamplerConfig(), [text])
    for text in ('mask_steps=' + '9' * 5000, 'mask_steps=1e30', 'temperature=1e400', 'keep_frames=' + '9' * 31):
        with pytest.raises(ConfigError, match=text.split('=')[0]):
            override(MagiSamplerConfig(), [text])
    assert override(MagiSamplerConfig(), ['x0_clip=inf', 'temperature=0']).x0_clip == math.inf
    with pytest.raises(ConfigError, match="unknown field 'temprature': choose one of mask_steps"):
        replace_fields(MagiSamplerConfig(), {'temprature': 1.0})


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'sampler': {'denoise_steps': 2000}}, r'sampler\.denoise_steps = 2000 .*: choose .* from 2 to 1000'),
        ({'sampler': {'start': 1000}}, r'sampler\.start = 1000 .*: choose sampler\.start from 1 to 999'),
        ({'sampler': {'context_level': 6}}, r'sampler\.context_level = 6 .*: choose .* from 0 to 5'),
        ({'sampler': {'guidance': 2.0}}, r'masking\.history_dropout > 0: set sampler\.guidance = 1'),
        ({'masking': {'ratio_min': 0.8, 'ratio_max': 0.7}}, r'ratio_min = 0\.8 is more than masking\.ratio_max = 0\.7'),
        ({'data': {'batch_size': 7}, 'optim': {'accumulate': 2}}, r'accumulate = 2: choose data\.batch_size = 8'),
        ({'train': {'steps': 2**31 - 1}}, r'train\.steps = 2147483647 x data\.batch_size = 128 .*: choose'),
        ({'data': {'context_frames': 17}}, r'context_frames = 17 is more than data\.frames = 16: choose'),
    ],
)
def test_fields_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        start(changes)


def test_an_autoencoder_does_not_mind_a_sampler_that_it_never_uses():
    start({'objective': 'autoencoder', 'sampler': {'denoise_steps': 2000}})
    with pytest.raises(ConfigError, match='denoise_steps'):
        check_sampler(from_config_dict({'sampler': {'denoise_steps': 2000}}))


def test_seeds_are_32_bits():
    assert start({'seed': 2**32 - 1}).seed == 2**32 - 1
    for seed in (-1, 2**32):
        with pytest.raises(ConfigError, match=rf'config\.seed = {seed} is out of range: choose from 0 to 4294967295'):
            start({'seed': seed})


def test_the_masking_levels_cannot_be_none():
    with pytest.raises(ConfigError, match=r'config\.masking\.noise_std holds 0 values: give from 1 to 1000'):
        start({'masking': {'noise_std': ()}})


def test_help_tells_what_each_field_may_hold():
    texts = schema.field_help(MagiSamplerConfig)
    assert texts['mask_steps'] == 'from 1 to 65536' and texts['x0_clip'] == 'inf or any finite number above 0'
    assert texts['solver'] == 'ancestral or ddim or dpm++' and set(texts) == set(
        dataclasses.asdict(MagiSamplerConfig())
    )
    assert schema.field_help(schema.OptimConfig)['b1'] == 'from 0, below 1'
