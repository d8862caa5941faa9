"""Write straight-line SIMD code once, as plain Python, and have Numba kernels call it.

Numba compiles the loops of a kernel; what happens to the elements inside a loop is traced here into LLVM vector
instructions. Three things ask for it: calls into libm do not vectorise (one GELU backward of 16.8 M elements: 440 ms
through libm, 20 ms through polynomials), the loop vectoriser does not take 256 bytes of one stream before the next
(worth 1.14x to 1.3x in a memory-bound kernel), and a matrix product needs its accumulators in registers.

`traced(function, dtype)` turns a Python function into a Numba intrinsic. The function receives a `Machine` `m` and one
`Value` per argument, and is run once, while Numba generates code::

    def axpy(m, alpha, x, y, rows_left):            # alpha: float, x and y: addresses
        mask = m.mask(rows_left)
        m.store(y, m.fma(m.splat(alpha), m.load(x, mask), m.load(y, mask)), mask)

Arithmetic is exactly what is written: no fast-math flag is ever set, an `fma` is one where the code says so, and the
last, partial vector of an array runs the same instructions under a mask. So a result does not depend on where in
an array an element lies, nor on how the work was split over threads. NaN and Inf are ordinary values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import numpy as np
from llvmlite import ir

from .inner import Inner, intrinsic

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
CACHE_LINE = 64
STREAM_BYTES = 256  # taken of one array before turning to the next
# GELU backward of 16.8 M elements: 7.7 ms without, 5.6 with; Adam of 33.5 M parameters is a little faster too, but at
# 1024 a third slower.
PREFETCH_BYTES = 2048


class _Splat(ir.Constant):
    """A vector of one number. Written lane by lane, as llvmlite does, they took a quarter of the time to compile."""

    def __init__(self, vector: ir.VectorType, number: float | int):
        self.type, self.constant = vector, ir.Constant(vector.element, number)

    def _get_reference(self) -> str:
        return f"splat ({self.constant})"


class Value:
    """One SSA value: a scalar or vector of floats, or of integers. Operators emit the instruction of their name."""

    __slots__ = ("ir", "m")

    def __init__(self, m: Machine, value: ir.Value):
        self.m, self.ir = m, value

    def _both(self, other: Value | float) -> tuple[ir.Value, ir.Value]:
        return self.ir, self.m.like(self, other).ir

    def __add__(self, other: Value | float) -> Value:
        return self.m.emit("add", *self._both(other))

    def __sub__(self, other: Value | float) -> Value:
        return self.m.emit("sub", *self._both(other))

    def __mul__(self, other: Value | float) -> Value:
        return self.m.emit("mul", *self._both(other))

    def __truediv__(self, other: Value | float) -> Value:
        return self.m.emit("div", *self._both(other))

    def __floordiv__(self, other: Value | int) -> Value:
        """Quotient of integers that are not negative."""
        return Value(self.m, self.m.builder.udiv(*self._both(other)))

    def __radd__(self, other: float) -> Value:
        return self.m.like(self, other) + self

    def __rsub__(self, other: float) -> Value:
        return self.m.like(self, other) - self

    def __rmul__(self, other: float) -> Value:
        return self.m.like(self, other) * self

    def __rtruediv__(self, other: float) -> Value:
        return self.m.like(self, other) / self

    def __neg__(self) -> Value:
        return Value(self.m, self.m.builder.fneg(self.ir))

    # Ordered comparisons: false where either side is NaN.
    def __lt__(self, other: Value | float) -> Value:
        return self.m.compare("<", *self._both(other))

    def __le__(self, other: Value | float) -> Value:
        return self.m.compare("<=", *self._both(other))

    def __gt__(self, other: Value | float) -> Value:
        return self.m.compare(">", *self._both(other))

    def __ge__(self, other: Value | float) -> Value:
        return self.m.compare(">=", *self._both(other))

    def __and__(self, other: Value) -> Value:
        return Value(self.m, self.m.builder.and_(self.ir, other.ir))

    def __or__(self, other: Value) -> Value:
        return Value(self.m, self.m.builder.or_(self.ir, other.ir))


class Machine:
    """The instructions: vectors of `lanes` elements of `dtype`.

    lanes : elements per vector; 256 bytes' worth unless told, which LLVM splits over as many registers as it takes
    """

    def __init__(self, builder: ir.IRBuilder, dtype: np.dtype, lanes: int | None = None):
        self.builder = builder
        self.dtype = np.dtype(dtype)
        self.lanes = lanes or STREAM_BYTES // self.dtype.itemsize
        self.scalar = ir.FloatType() if self.dtype == np.float32 else ir.DoubleType()
        self.vector = ir.VectorType(self.scalar, self.lanes)
        self.bits = I32 if self.dtype == np.float32 else I64
        self.bits_vector = ir.VectorType(self.bits, self.lanes)

    def with_lanes(self, lanes: int, dtype: np.dtype | type | None = None) -> Machine:
        """Return the same machine with another vector length or element type."""
        return Machine(self.builder, np.dtype(dtype or self.dtype), lanes)

    # --- values

    def emit(self, name: str, a: ir.Value, b: ir.Value) -> Value:
        element = a.type.element if isinstance(a.type, ir.VectorType) else a.type
        prefix = "" if isinstance(element, ir.IntType) else "f"
        return Value(self, getattr(self.builder, prefix + name)(a, b))

    def compare(self, relation: str, a: ir.Value, b: ir.Value) -> Value:
        element = a.type.element if isinstance(a.type, ir.VectorType) else a.type
        if isinstance(element, ir.IntType):
            return Value(self, self.builder.icmp_signed(relation, a, b))
        return Value(self, self.builder.fcmp_ordered(relation, a, b))

    def like(self, template: Value, other: Value | float) -> Value:
        """Return `other` in the type of `template`: a Python number becomes a constant of that type."""
        if isinstance(other, Value):
            return other
        return self.constant(template.ir.type, other)

    def constant(self, type_: ir.Type, number: float) -> Value:
        if isinstance(type_, ir.VectorType):
            return Value(self, _Splat(type_, self._number(type_.element, number)))
        return Value(self, ir.Constant(type_, self._number(type_, number)))

    def _number(self, type_: ir.Type, number: float) -> float | int:
        if isinstance(type_, ir.IntType):
            return int(number)
        return float(np.float32(number)) if isinstance(type_, ir.FloatType) else float(number)

    def full(self, number: float) -> Value:
        """Return a vector of one constant, rounded to the dtype."""
        return self.constant(self.vector, number)

    def integer(self, number: Value | int) -> Value:
        """Return an int64 scalar."""
        return number if isinstance(number, Value) else Value(self, I64(number))

    def zero(self) -> Value:
        return self.full(0.0)

    def splat(self, scalar: Value) -> Value:
        """Return a vector of one scalar; a double is rounded to the dtype first."""
        value = scalar.ir
        if value.type != self.scalar:
            value = self.builder.fptrunc(value, self.scalar)
        return Value(self, self._broadcast(value, self.lanes))

    def to_double(self, integer: Value) -> Value:
        """Return an int64 scalar as a double."""
        return Value(self, self.builder.sitofp(integer.ir, ir.DoubleType()))

    def _broadcast(self, value: ir.Value, lanes: int) -> ir.Value:
        vector = ir.VectorType(value.type, lanes)
        one = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(
            one, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        )

    def convert(self, value: Value, dtype: np.dtype | type) -> Value:
        """Convert a float vector to another float type, lane by lane."""
        target = ir.FloatType() if np.dtype(dtype) == np.float32 else ir.DoubleType()
        if target == value.ir.type.element:
            return value
        vector = ir.VectorType(target, value.ir.type.count)
        cast = self.builder.fpext if isinstance(target, ir.DoubleType) else self.builder.fptrunc
        return Value(self, cast(value.ir, vector))

    def split(self, value: Value, lanes: int) -> list[Value]:
        """Return a vector as shorter ones of `lanes` each, in their order."""
        count = value.ir.type.count
        return [self._shuffle(value, value, list(range(i, i + lanes))) for i in range(0, count, lanes)]

    def reduce(self, value: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """Combine all lanes into a scalar, halving the vector each time: a fixed order, and few steps."""
        lanes = value.ir.type.count
        while lanes > 1:
            lanes //= 2
            low, high = (self._shuffle(value, value, list(range(i, i + lanes))) for i in (0, lanes))
            value = combine(low, high)
        return Value(self, self.builder.extract_element(value.ir, I32(0)))

    # --- memory

    def mask(self, count: Value) -> Value:
        """Return the mask of the first `count` lanes (an int64 of 1 or more)."""
        lanes = ir.Constant(ir.VectorType(I32, self.lanes), list(range(self.lanes)))
        limit = self._broadcast(self.builder.trunc(count.ir, I32), self.lanes)
        return Value(self, self.builder.icmp_signed("<", lanes, limit))

    def at(self, base: Value, index: Value | int) -> Value:
        """Return the address of element `index` (int64) past the address `base`."""
        return base + index * self.dtype.itemsize

    def _pointer(self, address: Value) -> ir.Value:
        return self.builder.inttoptr(address.ir, POINTER)

    def load(self, address: Value, mask: Value | None = None) -> Value:
        """Load a vector from an address aligned to the element size; lanes outside `mask` are zero."""
        if mask is None:
            value = self.builder.load(self._pointer(address), typ=self.vector)
            value.align = self.dtype.itemsize
            return Value(self, value)
        return self._call(
            f"llvm.masked.load.{self._suffix()}.p0",
            self.vector,
            [self._pointer(address), I32(self.dtype.itemsize), mask.ir, self.zero().ir],
        )

    def store(self, address: Value, value: Value, mask: Value | None = None, stream: bool = False) -> None:
        """Store a vector. `stream` asks for a store past the caches: the address must be a multiple of 64 bytes."""
        if mask is not None:
            arguments = [value.ir, self._pointer(address), I32(self.dtype.itemsize), mask.ir]
            self._call(f"llvm.masked.store.{self._suffix()}.p0", ir.VoidType(), arguments)
            return
        store = self.builder.store(value.ir, self._pointer(address))
        store.align = CACHE_LINE if stream else self.dtype.itemsize
        if stream:
            store.set_metadata("nontemporal", self.builder.module.add_metadata([I32(1)]))

    def load_scalar(self, address: Value) -> Value:
        """Load one element and spread it over a vector."""
        value = self.builder.load(self._pointer(address), typ=self.scalar)
        value.align = self.dtype.itemsize
        return self.splat(Value(self, value))

    def load_int(self, address: Value) -> Value:
        """Load one int64: an entry of a table of addresses or sizes."""
        return Value(self, self.builder.load(self._pointer(address), typ=I64))

    def load_double(self, address: Value) -> Value:
        """Load one double: a rate or coefficient on its way to `splat`."""
        return Value(self, self.builder.load(self._pointer(address), typ=ir.DoubleType()))

    def store_double(self, address: Value, scalar: Value) -> None:
        """Store a scalar as a double."""
        value = scalar.ir if scalar.ir.type == ir.DoubleType() else self.builder.fpext(scalar.ir, ir.DoubleType())
        self.builder.store(value, self._pointer(address))

    def store_int(self, address: Value, scalar: Value) -> None:
        """Store an integer scalar that is not negative as an int64."""
        value = scalar.ir if scalar.ir.type == I64 else self.builder.zext(scalar.ir, I64)
        self.builder.store(value, self._pointer(address))

    def fence(self) -> None:
        """Order streaming stores before whatever follows."""
        self.builder.fence("seq_cst")

    def prefetch(self, address: Value, size: int = CACHE_LINE) -> None:
        """Ask for the cache lines of `size` bytes at `address` to be brought near; any address is allowed."""
        for line in range(0, size, CACHE_LINE):
            arguments = [self._pointer(address + line), I32(0), I32(3), I32(1)]
            self._call("llvm.prefetch.p0", ir.VoidType(), arguments)

    def load_ahead(self, address: Value, mask: Value | None = None, ahead: int = PREFETCH_BYTES) -> Value:
        """Load a vector of a long stream, and ask for what lies `ahead` bytes further on."""
        if mask is None:
            self.prefetch(address + ahead, self.lanes * self.dtype.itemsize)
        return self.load(address, mask)

    # --- functions

    def _suffix(self) -> str:
        return f"v{self.lanes}f{8 * self.dtype.itemsize}"

    def _call(self, name: str, result: ir.Type, arguments: Sequence[ir.Value]) -> Value:
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return Value(self, self.builder.call(function, arguments))

    def _unary(self, name: str, value: Value) -> Value:
        return self._call(f"llvm.{name}.{self._suffix()}", self.vector, [value.ir])

    def fma(self, a: Value | float, b: Value | float, c: Value | float) -> Value:
        """Return a * b + c, rounded once."""
        template = next(v for v in (a, b, c) if isinstance(v, Value))
        arguments = [self.like(template, v).ir for v in (a, b, c)]
        return self._call(f"llvm.fma.{self._suffix()}", self.vector, arguments)

    def poly(self, x: Value, *coefficients: float) -> Value:
        """Evaluate a polynomial by Horner's rule; coefficients from the highest power to the lowest."""
        result = self.full(coefficients[0])
        for coefficient in coefficients[1:]:
            result = self.fma(result, x, self.full(coefficient))
        return result

    def poly_by_pairs(self, x: Value, square: Value, *coefficients: float) -> Value:
        """Evaluate a polynomial by Horner's rule in square = x * x, on pairs of terms; highest power first.

        Half as many operations wait for each other, which a processor can't overlap with the next vectors: gelu
        backward of 16.8 M elements takes 5.7 ms in place of 6.2 on one thread. Horner's rule in x loses less where
        terms of opposite signs cancel.
        """
        odd = len(coefficients) % 2
        pairs = zip(coefficients[odd::2], coefficients[odd + 1 :: 2], strict=True)
        terms = [self.fma(x, high, self.full(low)) for high, low in pairs]
        result = self.full(coefficients[0]) if odd else terms.pop(0)
        for term in terms:
            result = self.fma(result, square, term)
        return result

    def sqrt(self, value: Value) -> Value:
        return self._unary("sqrt", value)

    def abs(self, value: Value) -> Value:
        return self._unary("fabs", value)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self._call(f"llvm.copysign.{self._suffix()}", self.vector, [magnitude.ir, sign.ir])

    def select(self, condition: Value, yes: Value | float, no: Value | float) -> Value:
        template = self.zero()
        return Value(self, self.builder.select(condition.ir, self.like(template, yes).ir, self.like(template, no).ir))

    def maximum(self, a: Value, b: Value | float) -> Value:
        """Return b where a < b, else a: a NaN in `a` stays, one in `b` does not enter."""
        return self.select(a < b, b, a)

    def minimum(self, a: Value, b: Value | float) -> Value:
        """Return b where a > b, else a: a NaN in `a` stays, one in `b` does not enter."""
        return self.select(a > b, b, a)

    def choose(self, condition: Value, yes: Value | int, no: Value | int) -> Value:
        """Return one of two int64 scalars."""
        yes, no = (v.ir if isinstance(v, Value) else I64(v) for v in (yes, no))
        return Value(self, self.builder.select(condition.ir, yes, no))

    def transpose(self, rows: list[Value]) -> list[Value]:
        """Transpose a square of `lanes` vectors, by as many rounds of perfect shuffles as its size has doublings."""
        n = self.lanes
        low = [v for i in range(n // 2) for v in (i, n + i)]
        for _ in range(n.bit_length() - 1):
            rows = [
                self._shuffle(rows[i], rows[i + n // 2], [v + half for v in low])
                for i in range(n // 2)
                for half in (0, n // 2)
            ]
        return rows

    def _shuffle(self, a: Value, b: Value, lanes: list[int]) -> Value:
        return Value(self, self.builder.shuffle_vector(a.ir, b.ir, ir.Constant(ir.VectorType(I32, len(lanes)), lanes)))

    def is_nan(self, value: Value) -> Value:
        return Value(self, self.builder.fcmp_unordered("uno", value.ir, value.ir))

    def to_bits(self, value: Value) -> Value:
        return Value(self, self.builder.bitcast(value.ir, self.bits_vector))

    def from_bits(self, value: Value) -> Value:
        return Value(self, self.builder.bitcast(value.ir, self.vector))

    def magnitude(self, value: Value) -> Value:
        """Return the bits of |value|: integers in the order of the numbers, inf above them and NaN above inf.

        No arithmetic on floats: a processor that takes subnormal numbers for zero leaves them alone here.
        """
        return self.to_bits(self.abs(value))

    def shift_left(self, value: Value, count: int) -> Value:
        return Value(self, self.builder.shl(value.ir, self.constant(value.ir.type, count).ir))

    def shift_right(self, value: Value, count: int) -> Value:
        return Value(self, self.builder.ashr(value.ir, self.constant(value.ir.type, count).ir))

    # --- loops and branches

    def loop(
        self,
        start: Value | int,
        stop: Value,
        step: int,
        state: list[Value],
        body: Callable[[Value, list[Value]], list[Value]],
    ) -> list[Value]:
        """Run state = body(index, state) for index (int64) in range(start, stop, step); return the last state."""
        builder = self.builder
        first = start.ir if isinstance(start, Value) else I64(start)
        before = builder.block
        head, inside, after = (builder.append_basic_block(f"loop.{n}") for n in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(I64)
        phis = [builder.phi(v.ir.type) for v in state]
        index.add_incoming(first, before)
        for phi, value in zip(phis, state, strict=True):
            phi.add_incoming(value.ir, before)
        builder.cbranch(builder.icmp_signed("<", index, stop.ir), inside, after)
        builder.position_at_end(inside)
        new = body(Value(self, index), [Value(self, phi) for phi in phis])
        index.add_incoming(builder.add(index, I64(step)), builder.block)
        for phi, value in zip(phis, new, strict=True):
            phi.add_incoming(value.ir, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return [Value(self, phi) for phi in phis]

    def when(self, condition: Value, body: Callable[[], None]) -> None:
        """Run `body` where a scalar condition holds."""
        with self.builder.if_then(condition.ir):
            body()

    def over(
        self,
        first: Value | int,
        last: Value,
        body: Callable[[Value, Value | None], None],
        line_up: Value | None = None,
    ) -> None:
        """Run body(index, mask) for each vector of elements first to last; mask is None but for a partial one.

        line_up : address of element 0 of the array whose whole vectors are to begin on cache lines
        """

        def stateless(index: Value, mask: Value | None, state: list[Value]) -> list[Value]:
            body(index, mask)
            return []

        begin = self.integer(first)
        if line_up is not None:
            ahead = self.integer(0) - (self.at(line_up, begin) & self.integer(CACHE_LINE - 1))
            head = (ahead & self.integer(CACHE_LINE - 1)) // self.dtype.itemsize
            head = self.choose(head < last - begin, head, last - begin)
            self.when(head > 0, lambda: body(begin, self.mask(head)))
            self.fold(begin + head, last, [], stateless)
        else:
            self.fold(begin, last, [], stateless)

    def fold(
        self,
        first: Value | int,
        last: Value,
        state: list[Value],
        body: Callable[[Value, Value | None, list[Value]], list[Value]],
    ) -> list[Value]:
        """The same with state = body(index, mask, state); return the last state."""
        builder = self.builder
        first = self.integer(first)
        whole = last - Value(self, builder.srem((last - first).ir, I64(self.lanes)))
        state = self.loop(first, whole, self.lanes, state, lambda index, state: body(index, None, state))
        before, inside, after = builder.block, builder.append_basic_block("rest"), builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", whole.ir, last.ir), inside, after)
        builder.position_at_end(inside)
        rest = body(whole, self.mask(last - whole), state)
        inside = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        merged = []
        for whole_value, rest_value in zip(state, rest, strict=True):
            phi = builder.phi(whole_value.ir.type)
            phi.add_incoming(whole_value.ir, before)
            phi.add_incoming(rest_value.ir, inside)
            merged.append(Value(self, phi))
        return merged

    def switch(self, value: Value, cases: dict[int, Callable[[], None]]) -> None:
        """Run the case of an int64; nothing where there is none."""
        builder = self.builder
        after = builder.append_basic_block("switch.after")
        switch = builder.switch(value.ir, after)
        for number, case in cases.items():
            block = builder.append_basic_block(f"case.{number}")
            switch.add_case(I64(number), block)
            builder.position_at_end(block)
            case()
            builder.branch(after)
        builder.position_at_end(after)


def traced(function: Callable[..., None], dtype: np.dtype | type, lanes: int | None = None) -> Inner:
    """Turn `function(m, *values)` into a Numba intrinsic of that many arguments (integers or floats), without result.

    function : called once per compilation with a `Machine` and one `Value` for each further argument
    dtype : element type of the machine, float32 or float64
    lanes : elements per vector; 256 bytes' worth unless given
    """

    def define(typingctx, *arguments):
        from numba.core import types

        def generate(context, builder, signature, values):
            m = Machine(builder, np.dtype(dtype), lanes)
            wide = [
                context.cast(builder, value, type_, types.int64 if isinstance(type_, types.Integer) else types.float64)
                for value, type_ in zip(values, signature.args, strict=True)
            ]
            function(m, *(Value(m, value) for value in wide))
            return context.get_dummy_value()

        return types.void(*arguments), generate

    # Numba reads the number of arguments off the signature.
    parameters = list(inspect.signature(function).parameters.values())[1:]
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    define.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    define.__name__ = function.__name__
    return intrinsic(define)
