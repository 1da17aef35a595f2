"""Parses the text of a compiled program (scheduled HLO): instructions, shapes, loop counts.

XLA's cost analysis counts the body of a scan once. The text allows to count it as often as it runs.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

BYTES = {'pred': 1, 's4': 0.5, 'u4': 0.5, 'bf16': 2, 'c64': 8, 'c128': 16}  # others end in their bits: f32, s8

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^()]*(?:\([^()]*\)[^()]*)*)\)(.*)$')
_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](?:\{([^}]*)\})?')
_CALLED = re.compile(r'\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array in the shape of an instruction.

    Attributes:
      dtype: name of the dtype in the text.
      dims: sizes of the axes.
      space: memory space; on a TPU 0 is HBM and 1 the on-chip vector memory.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int

    @property
    def bytes(self) -> float:
        """Bytes without layout padding; 0 for a token."""
        bits = re.match(r'[a-z]+(\d+)', self.dtype)
        width = BYTES.get(self.dtype, int(bits.group(1)) / 8 if bits else 0)
        return width * math.prod(self.dims)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program: `%name = shape opcode(inside), attributes`."""

    name: str
    shape: str
    opcode: str
    arguments_text: str
    attributes: str

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Arrays of the result; a tuple is flattened."""
        found = []
        for dtype, dims, layout in _ARRAY.findall(self.shape):
            space = re.search(r'S\((\d+)\)', layout)
            sizes = tuple(int(size) for size in dims.split(',') if size)
            found.append(Array(dtype, sizes, int(space.group(1)) if space else 0))
        return tuple(found)

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(re.findall(r'%([\w.\-]+)', self.arguments_text))

    @property
    def called(self) -> list[str]:
        """Names of the computations that the instruction may call."""
        branches = _BRANCHES.search(self.attributes)
        names = re.findall(r'[\w.\-]+', branches.group(1)) if branches else []
        return names + _CALLED.findall(self.attributes)

    def number(self, name: str) -> int | None:
        """Return the value of an integer attribute such as `name=7`, or None."""
        found = re.search(rf'\b{name}=(\d+)', self.attributes)
        return int(found.group(1)) if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions by name, in scheduled order."""

    instructions: dict[str, Instruction]
    root: str

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def of(self, instruction: Instruction) -> list[Instruction]:
        """Return the operands of an instruction of this computation."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program for each of `partitions` chips."""

    computations: dict[str, Computation]
    entry: str
    partitions: int

    def loop_count(self, loop: Instruction) -> int | None:
        """Return how often the body of a `while` runs, or None if the text does not tell.

        XLA states the count of some loops. In other loops (scans) the counter starts at 0 and the condition compares it
        with a constant. The count is then the largest integer constant in the condition and the functions it calls.
        """
        known = re.search(r'known_trip_count\D*(\d+)', loop.attributes)
        if known:
            return int(known.group(1))
        condition = re.search(r'condition=%?([\w.\-]+)', loop.attributes).group(1)
        constants = list(self._integers(condition))
        return max(constants) if constants else None

    def _integers(self, name: str) -> Iterator[int]:
        for instruction in self.computations[name]:
            if instruction.opcode == 'constant' and re.fullmatch(r'\d+', instruction.arguments_text):
                yield int(instruction.arguments_text)
            for called in instruction.called:
                yield from self._integers(called)


def parse(text: str) -> Module:
    """Parse the text of `compiled.as_text()`."""
    computations, entry, instructions, name, root = {}, '', {}, '', ''
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, instructions, root = header.group(2), {}, ''
            entry = name if header.group(1) else entry
        elif line.startswith('}'):
            computations[name] = Computation(instructions, root)
        elif found := _INSTRUCTION.match(line):
            is_root, key, *rest = found.groups()
            instructions[key] = Instruction(key, *rest)
            root = key if is_root else root
    partitions = re.search(r'num_partitions=(\d+)', text)
    return Module(computations, entry, int(partitions.group(1)) if partitions else 1)


def group_size(instruction: Instruction, partitions: int) -> int:
    """Return the number of chips in one group of a collective, for all notations of replica groups in XLA."""
    text = instruction.attributes
    if groups := re.search(r'replica_groups=\[\d+,(\d+)\]<=', text):
        return int(groups.group(1))
    if groups := re.search(r'replica_groups=\{\{([\d,]+)\}', text):
        return len(groups.group(1).split(','))
    if groups := re.search(r'replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}', text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", groups.group(1))}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups.group(2))
        return math.prod(int(part) if part else sizes[axis] for axis, part in axes)
    return partitions
