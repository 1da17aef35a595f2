"""What a frame costs, counted in the program as traced: nothing is computed that was computed before."""

import math

import jax
import pytest
from jax.extend import core

from configs.magi_ucf101 import get_config
from magi_jax.config import MeshConfig, from_config_dict
from magi_jax.models.flops import frame_flops, head_flops
from magi_jax.objectives.api import clip_shape
from magi_jax.parallel import layout
from magi_jax.parallel.mesh import make_mesh
from magi_jax.training.lowering import abstract_tokenizer, trace_next_frame

CLIPS = 2


@pytest.fixture(scope='module')
def config():
    """The paper's size: 20 blocks of width 1280, 16 frames of 256 tokens, 64 mask and 100 denoise steps."""
    return from_config_dict(get_config())


@pytest.fixture(scope='module', params=[1, layout.TPU_LANES], ids=['heads split', 'heads merged'])
def frame(config, request):
    """The program of CPUs and that of TPUs."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, '_lanes', lambda mesh: request.param)
        return trace_next_frame(config, mesh, abstract_tokenizer(config), CLIPS, frames=16).jaxpr.jaxpr


def executed(jaxpr, times=1):
    """(equation, how often it runs) of everything in a program; of a `cond` the branch that has least in it."""
    for equation in jaxpr.eqns:
        yield equation, times
        inner = [getattr(value, 'jaxpr', value) for value in jax.tree.leaves(list(equation.params.values()))]
        inner = [value for value in inner if isinstance(value, core.Jaxpr)]
        if equation.primitive.name == 'cond':
            inner = [min(inner, key=lambda branch: len(list(executed(branch))))]
        assert equation.primitive.name != 'while' or all(not _products(body) for body in inner)
        for body in inner:
            yield from executed(body, times * equation.params.get('length', 1))


def _products(jaxpr):
    return [(equation, times) for equation, times in executed(jaxpr) if equation.primitive.name == 'dot_general']


def _flops(equation):
    (contracted, _), _ = equation.params['dimension_numbers']
    factor = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(factor[axis] for axis in contracted)


def test_one_trunk_pass_a_mask_step_and_one_to_commit(config, frame):
    """Every layer has one MLP, and only the trunk's have the exact GELU."""
    gelus = sum(times for equation, times in executed(frame) if equation.primitive.name == 'erf')
    assert gelus == (config.sampler.mask_steps + 1) * 2 * config.model.blocks


def test_flops_of_a_frame_are_the_least_there_are(config, frame):
    """Beyond it: mask steps share one number of revealed tokens; merged heads are summed by a product with 0 and 1."""
    flops = sum(
        times * _flops(equation) for equation, times in executed(frame) if equation.primitive.name == 'dot_general'
    )
    shape = clip_shape(config, abstract_tokenizer(config))
    assert flops <= 1.05 * CLIPS * sum(frame_flops(config, shape, slots=16).values())


def test_what_depends_on_the_token_alone_leaves_the_denoise_loop(config, frame):
    """Of the head's 41 MFLOPs a row, the loop of 100 steps keeps two products of 1024 x 1024 a block, and the ends."""
    (loop,) = [scan for scan, _ in executed(frame) if scan.params.get('length') == config.sampler.denoise_steps]
    in_loop = sum(_flops(product) for product, _ in _products(loop.params['jaxpr'].jaxpr)) / (7 * CLIPS)
    assert in_loop < 0.33 * head_flops(config.model, 16)
