"""Costs of a compiled program on one chip: FLOPs, HBM traffic, cycles, collectives, with loops counted fully.

All figures are lower bounds or compiler estimates, not measurements.
"""

import functools
import math
import re
from collections import Counter

import numpy as np

from magi_jax.parallel.hlo import Array, Computation, Instruction, Module, group_size, parse

COLLECTIVES = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute', 'ragged-all-to-all')
# Operations that move values and compute nothing.
MOVES = {'copy', 'slice', 'dynamic-slice', 'dynamic-update-slice', 'concatenate', 'transpose', 'reshape', 'pad'}
MOVES |= {'gather', 'copy-start', 'copy-done', 'slice-start', 'slice-done'}
BESIDE_MOVES = {'iota', 'broadcast', 'convert'}  # also allowed in a fusion that only moves values
FREE = {'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id'}
CONTROL = {'while', 'conditional', 'call', 'async-start', 'async-update', 'async-done'}
SLICES = {'slice', 'dynamic-slice', 'gather'}
# What a Pallas kernel states about itself. The compiler knows neither its FLOPs nor its cycles.
KERNEL = re.compile(r'"cost_estimate":\{"flops":"(\d+)","transcendentals":"\d+","bytes_accessed":"(\d+)"')


class Costs:
    """Costs of a program and of its functions; each function is computed once.

    A `conditional` counts as its branch with the fewest FLOPs. In the sampler the other branch restarts a full window,
    which happens once in many frames.

    Attributes:
      unknown_loops: names of loops whose count the text does not tell; they count once.
    """

    def __init__(self, text: str) -> None:
        self.module: Module = parse(text)
        self.unknown_loops: list[str] = []
        self._of = functools.cache(self._costs)

    @property
    def total(self) -> Counter:
        """Costs of one run of the program on one chip.

        The result has these keys:

            flops                               of matrix products, convolutions and kernels
            kernel_flops                        the part that kernels state
            hbm_bytes                           read and written
            cycles                              estimates of the compiler, without collectives and kernels
            move_cycles                         the part that moves values
            ('count', kind), ('bytes', kind)    of each kind of collective, as bytes that a chip sends in a ring
        """
        return self._of(self.module.entry)

    def _costs(self, name: str) -> Counter:
        total, seen = Counter(), set()
        computation = self.module.computations[name]
        for instruction in computation:
            if instruction.opcode == 'while':
                loop_count = self.module.loop_count(instruction)
                if loop_count is None:
                    self.unknown_loops.append(instruction.name)
                for called in instruction.called:
                    _add(total, self._of(called), 1 if loop_count is None else loop_count)
            elif instruction.opcode == 'conditional':
                _add(total, min((self._of(called) for called in instruction.called), key=lambda c: c['flops']))
            elif instruction.opcode in ('call', 'async-start'):
                for called in instruction.called:
                    _add(total, self._of(called))
            else:
                _add(total, self._plain(computation, instruction, seen))
        return total

    def _plain(self, computation: Computation, instruction: Instruction, seen: set[int]) -> Counter:
        """Return the costs of an instruction without control flow; `seen` holds the channels already counted.

        The compiler repeats an asynchronous all-gather in several fusions, so inside fusions one channel counts as one
        collective. Collectives outside fusions (of a shard_map) all share channel 1 and each count.
        """
        flops, hbm_bytes = self._flops(computation, instruction), self._hbm_bytes(computation, instruction)
        costs = Counter(
            flops=flops, hbm_bytes=hbm_bytes, kernel_flops=flops if KERNEL.search(instruction.attributes) else 0
        )
        estimate = instruction.attributes.partition('"estimated_cycles":"')[2].partition('"')[0]
        if estimate:
            costs['cycles'] += int(estimate)
            costs['move_cycles'] += int(estimate) * self._only_moves(instruction)
        for collective in self._collectives(instruction):
            channel = collective.number('channel_id')
            if collective is instruction or channel is None or channel not in seen:
                seen.add(channel)
                kind = collective.opcode.removesuffix('-start')
                costs['count', kind] += 1
                costs['bytes', kind] += ring_bytes(collective, self.module.partitions)
        return costs

    def _fused(self, instruction: Instruction) -> list[Computation]:
        if instruction.opcode != 'fusion':
            return []
        return [self.module.computations[name] for name in instruction.called]

    def _flops(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.opcode in ('dot', 'convolution'):
            lhs, rhs = (operand.arrays[0].dims for operand in computation.of(instruction))
            return (_dot_flops if instruction.opcode == 'dot' else _convolution_flops)(instruction, lhs, rhs)
        if kernel := KERNEL.search(instruction.attributes):
            return float(kernel.group(1))
        return sum(self._flops(inner, part) for inner in self._fused(instruction) for part in inner)

    def _collectives(self, instruction: Instruction) -> list[Instruction]:
        if instruction.opcode.removesuffix('-start') in COLLECTIVES:
            return [instruction]
        return [found for inner in self._fused(instruction) for part in inner for found in self._collectives(part)]

    def _only_moves(self, instruction: Instruction) -> bool:
        if instruction.opcode != 'fusion':
            return instruction.opcode in MOVES
        parts = [part.opcode for inner in self._fused(instruction) for part in inner]
        return not MOVES.isdisjoint(parts) and set(parts) <= MOVES | FREE | BESIDE_MOVES

    def _hbm_bytes(self, computation: Computation, instruction: Instruction) -> float:
        """Return bytes read from and written to HBM. For a slice only the slice counts."""
        opcode = instruction.opcode
        if opcode in FREE | CONTROL or opcode.endswith('-done'):
            return 0
        if kernel := KERNEL.search(instruction.attributes):
            return float(kernel.group(2))
        operands = computation.of(instruction)
        if opcode in ('copy-start', 'slice-start'):
            return _hbm(instruction.arrays[:1]) + _hbm(operands[0].arrays)
        if opcode == 'dynamic-update-slice':
            return 2 * _hbm(operands[1].arrays)
        if opcode in SLICES:
            return _hbm(instruction.arrays) + _portion(operands[0], instruction.arrays)
        inner = next(iter(self._fused(instruction)), None)
        if inner is None:
            return _hbm(instruction.arrays) + sum(_hbm(operand.arrays) for operand in operands)
        read = sum(_parameter_bytes(inner, index, operand) for index, operand in enumerate(operands))
        return read + _written_bytes(inner, instruction)


def _add(total: Counter, more: Counter, times: int = 1) -> None:
    for key, value in more.items():
        total[key] += value * times


def _hbm(arrays: tuple[Array, ...]) -> float:
    return sum(array.bytes for array in arrays if array.space == 0)


def _portion(operand: Instruction, parts: tuple[Array, ...]) -> float:
    """Return the bytes of `parts` if the operand that they are slices of lies in HBM."""
    return sum(part.bytes for part in parts) if _hbm(operand.arrays) else 0


def _parameter_bytes(inner: Computation, index: int, operand: Instruction) -> float:
    """Return the bytes that a fusion reads of an operand: 0 if updated in place, slices if only sliced."""
    name = next(part.name for part in inner if part.opcode == 'parameter' and part.arguments_text == str(index))
    users = [part for part in inner if name in part.operands]
    if users and all(user.opcode == 'dynamic-update-slice' and user.operands[0] == name for user in users):
        return 0
    if users and all(user.opcode in SLICES and user.operands[0] == name for user in users):
        return sum(_portion(operand, user.arrays) for user in users)
    return _hbm(operand.arrays)


def _written_bytes(inner: Computation, fusion: Instruction) -> float:
    """Return the bytes that a fusion writes. For a result that is updated in place only the update counts."""
    root = inner.instructions[inner.root]
    results = inner.of(root) if root.opcode == 'tuple' else [root]
    if len(results) != len(fusion.arrays):
        return _hbm(fusion.arrays)
    total = 0.0
    for result, array in zip(results, fusion.arrays):
        while result.opcode == 'bitcast':
            result = inner.of(result)[0]
        if array.space == 0:
            update = result.opcode == 'dynamic-update-slice'
            total += inner.of(result)[1].arrays[0].bytes if update else array.bytes
    return total


def ring_bytes(collective: Instruction, partitions: int) -> float:
    """Return the bytes that a chip sends in a collective over a ring of n: (n-1)/n of the result for an all-gather."""
    kind, n = collective.opcode.removesuffix('-start'), group_size(collective, partitions)
    arrays = collective.arrays
    if collective.opcode in ('all-gather-start', 'collective-permute-start'):  # (operands, results, contexts)
        arrays = [array for array in arrays if array.dims or array.dtype not in ('u32', 's32')]
        arrays = arrays[len(arrays) // 2 :]
    result = sum(array.bytes for array in arrays)
    share = {'all-reduce': 2 * (n - 1) / n, 'reduce-scatter': n - 1, 'collective-permute': 1}
    return result * share.get(kind, (n - 1) / n)


def _dot_flops(instruction: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> float:
    contracted = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', instruction.attributes)
    sizes = [lhs[int(d)] for d in contracted.group(1).split(',') if d] if contracted else []
    return 2.0 * math.prod(instruction.arrays[0].dims) * math.prod(sizes)


def _convolution_flops(instruction: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> float:
    """Count two FLOPs for every product of an input and a kernel value, without padding and gaps of dilated inputs.

    The TPU compiler writes all matrix products as convolutions, with batch axes as windows over dilated inputs.
    """
    labels = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    _, kernel, output = labels.groups()
    pairs = 1
    for axis in filter(str.isdigit, kernel):
        window = {name: int(_window(instruction, name, int(axis))) for name in ('stride', 'lhs_dilate', 'rhs_dilate')}
        low = int(_window(instruction, 'pad', int(axis), '0_0').split('_')[0])
        positions = np.arange(instruction.arrays[0].dims[output.index(axis)]) * window['stride'] - low
        reads = positions[:, None] + np.arange(rhs[kernel.index(axis)])[None] * window['rhs_dilate']
        last = (lhs[labels.group(1).index(axis)] - 1) * window['lhs_dilate']
        pairs *= int(((reads >= 0) & (reads <= last) & (reads % window['lhs_dilate'] == 0)).sum())
    batch, features = (instruction.arrays[0].dims[output.index(name)] for name in 'bf')
    groups = instruction.number('batch_group_count') or 1
    return 2.0 * batch * features * rhs[kernel.index('i')] * pairs / groups


def _window(instruction: Instruction, name: str, axis: int, default: str = '1') -> str:
    found = re.search(rf'window=\{{[^}}]*\b{name}=([\dx_\-]+)', instruction.attributes)
    return found.group(1).split('x')[axis] if found else default
