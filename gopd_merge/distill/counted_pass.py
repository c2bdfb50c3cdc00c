"""A pass of a plain decoder with its adapters, retold as the arrays that it makes and lets go: the code without the numbers. No torch.

The order is that of Transformers' layers, PEFT's, and those of `lora`; locals live as long as theirs, since that is what is counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gopd_merge.distill.ledger import Array, Back, Ledger, Storage, go_back
from gopd_merge.experts.decoder import Decoder

FLOAT = 4  # bytes: what adapters and norms compute in, whatever the base has
Ranks = Sequence[Mapping[str, int]]  # of an adapter: by layer, by the linear layer's name


@dataclass(frozen=True)
class Model:
    """A decoder as it is held: bytes of a value that is not packed, and whether its blocks' linear layers are packed to 4 bits."""

    decoder: Decoder
    width: int
    is_packed: bool


@dataclass(frozen=True)
class Adapted:
    """Which adapters compute a pass."""

    by_rows: tuple[tuple[Ranks, int], ...] = ()  # of a mixed batch: an adapter, and how many rows are its own
    all_rows: Ranks | None = None  # one for all, as PEFT runs it
    trained: Ranks | None = None  # one for all, with gradients


class Pass:
    """A pass over `rows` rows of `tokens` new tokens each, n together."""

    def __init__(self, ledger: Ledger, model: Model, rows: int, tokens: int, adapted: Adapted) -> None:
        self.ledger, self.model, self.adapted = ledger, model, adapted
        self.rows, self.tokens, self.n = rows, tokens, rows * tokens
        self._records = adapted.trained is not None

    def run(self, cache: list[list[Array]] | None = None, keys: int = 0, recompute: bool = False) -> Array:
        """The last hidden states, (n, H). A cache holds keys and values by layer, and the new ones are added; then rows are padded.

        `keys`: how many tokens there are to look at, with the new ones. With `recompute` a block keeps nothing but its input.
        """
        decoder, width = self.model.decoder, self.model.width
        x = embedded = self._new(self.n * decoder.hidden * width)
        mask = None if cache is None else self._mask(keys)
        turns = [self._new((1 if cache is None else self.rows) * self.tokens * decoder.head_size * width) for _ in range(2)]
        for number in range(decoder.layers):
            x = self._recomputed(number, x) if recompute else self._block(number, x, None if cache is None else cache[number], mask)
        made = self._norm(x, self.n, decoder.hidden)
        del turns, embedded
        return made

    def _new(self, size: int) -> Array:
        return self.ledger.new(size)

    def _made(self, size: int, sources: Sequence[Array], back: Back) -> Array:
        """What an operation makes; with its way back, where one of the sources has one."""
        made = self._new(size)
        return self.ledger.recorded(made, sources, back) if self._records and any(source.step for source in sources) else made

    def _mask(self, keys: int) -> Array:
        """(B, 1, T, K), a byte each."""
        causal = self._new(self.rows * self.tokens * keys)
        return self._new(causal.size)

    def _recomputed(self, number: int, x: Array) -> Array:
        def back(gradient: list[Array], kept: Storage = x.storage, is_asked: bool = x.step is not None) -> list[Array]:
            begin = Array(kept)
            if is_asked:
                begin = self.ledger.recorded(begin, [], None)
            last = self._block(number, begin).step
            return go_back(self.ledger, last, [gradient.pop()])

        self._records = False
        made = self._block(number, x)
        self._records = True
        return self.ledger.recorded(made, [x], back)

    def _block(self, number: int, x: Array, cache: list[Array] | None = None, mask: Array | None = None) -> Array:
        hidden = self.model.decoder.hidden
        between = self._sum(x, self._attention(number, self._norm(x, self.n, hidden), cache, mask))
        return self._sum(between, self._mlp(number, self._norm(between, self.n, hidden)))

    def _sum(self, one: Array, other: Array) -> Array:
        return self._made(one.size, [one, other], lambda gradient: [gradient[0]] * 2)

    def _attention(self, number: int, x: Array, cache: list[Array] | None, mask: Array | None) -> Array:
        decoder = self.model.decoder
        queries = self._heads(self._linear(number, "q_proj", x), decoder.heads)
        keys = self._heads(self._linear(number, "k_proj", x), decoder.key_heads)
        values = self._linear(number, "v_proj", x)
        queries, keys = self._turned(queries), self._turned(keys)
        if cache is not None:
            cache[0] = self._new(cache[0].size + keys.size)  # while the shorter one is there
            cache[1] = self._new(cache[1].size + values.size)
            keys, values = cache
        return self._linear(number, "o_proj", self._attended(queries, keys, values, mask))

    def _heads(self, x: Array, heads: int) -> Array:
        """Queries or keys by head, past a norm of each head if there is one."""
        return self._norm(x, self.n * heads, self.model.decoder.head_size) if self.model.decoder.norms_heads else x

    def _turned(self, x: Array) -> Array:
        """With rotary positions: x · cos + (its halves, turned) · sin."""
        by_cosine, half = self._new(x.size), self._new(x.size // 2)
        halves = self._new(x.size)
        del half
        by_sine = self._new(x.size)
        del halves
        made = self._made(x.size, [x], self._turned_back)
        del by_cosine, by_sine
        return made

    def _turned_back(self, gradient: list[Array]) -> list[Array]:
        size = gradient[0].size
        by_sine = self._new(size)
        half, padded = self._new(size // 2), self._new(size)
        del half
        halves = [padded, self._new(size)]
        del by_sine, padded
        both = self._new(size)
        del halves
        by_cosine = self._new(size)
        gradient.clear()
        total = self._new(size)
        del both, by_cosine
        return [total]

    def _attended(self, queries: Array, keys: Array, values: Array, mask: Array | None) -> Array:
        decoder, groups = self.model.decoder, self.model.decoder.heads // self.model.decoder.key_heads
        if mask is not None and groups > 1 and self.tokens > 1:  # without a mask, heads of queries share those of keys
            keys, values = self._new(groups * keys.size), self._new(groups * values.size)
        bias = None if mask is None else self._new(mask.size * self.model.width)
        sums = self._new(self.n * decoder.heads * FLOAT).storage
        made = self._new(queries.size)
        del bias
        kept = (sums, made.storage, *(one.storage for one in (queries, keys, values)))
        wanted = tuple(one.step is not None for one in (queries, keys, values))
        return self.ledger.recorded(made, [queries, keys, values], partial(self._attended_back, kept, wanted)) if self._records else made

    def _attended_back(self, kept: tuple[Storage, ...], wanted: tuple[bool, ...], gradient: list[Array]) -> list[Array]:
        found = [self._new(one.size) for one in kept[2:]]
        return [one for one, is_wanted in zip(found, wanted, strict=True) if is_wanted]

    def _mlp(self, number: int, x: Array) -> Array:
        gated = self._elementwise(self._elementwise(self._linear(number, "gate_proj", x)), self._linear(number, "up_proj", x))
        return self._linear(number, "down_proj", gated)

    def _elementwise(self, *sources: Array) -> Array:
        """An activation, or a product: what needs its sources for the way back."""
        return self._made(sources[0].size, sources, partial(self._all_back, tuple(one.storage for one in sources)))

    def _all_back(self, kept: tuple[Storage, ...], gradient: list[Array]) -> list[Array]:
        return [self._new(one.size) for one in kept]

    def _norm(self, x: Array, vectors: int, size: int) -> Array:
        """Root mean square of each vector, in float32."""
        is_float = self.model.width == FLOAT
        full = x if is_float else self._made(FLOAT * vectors * size, [x], partial(self._cast_back, x.size))
        square = self._new(full.size)
        del square
        roots = self._new(FLOAT * vectors).storage
        scaled = self._made(full.size, [full], partial(self._norm_back, (full.storage, roots)))
        del full
        if not is_float:
            scaled = self._made(x.size, [scaled], partial(self._cast_back, scaled.size))
        return self._made(x.size, [scaled], partial(self._cast_back, x.size))

    def _cast_back(self, size: int, gradient: list[Array]) -> list[Array]:
        """Of what needs nothing but the gradient."""
        return [self._new(size)]

    def _norm_back(self, kept: tuple[Storage, ...], gradient: list[Array]) -> list[Array]:
        size = gradient[0].size
        through = self._new(size)
        by_root = self._new(size)
        del by_root
        gradient.clear()
        spread = [self._new(size) for _ in range(4)]
        del spread[:3]
        total = self._new(through.size)
        del through, spread
        return [total]

    def _linear(self, number: int, name: str, x: Array) -> Array:
        by = self.adapted
        if by.trained and name in by.trained[number]:
            return self._trained(name, x, by.trained[number][name])
        made = self._base(name, x)
        if by.all_rows and name in by.all_rows[number]:
            made = self._with_update(name, x, made, by.all_rows[number][name])
        for ranks, rows in by.by_rows:
            if name in ranks[number]:
                self._add_update(name, ranks[number][name], rows * self.tokens)
        return made

    def _base(self, name: str, x: Array, records: bool = True) -> Array:
        """A layer without adapters. Packed ones are unpacked for as long as they run."""
        one = self.model.decoder.linear[name]
        dense = self._dense(name)
        made = self._made(self.n * one.outputs * self.model.width, [x] if records else [], partial(self._base_back, name))
        del dense
        if self.model.is_packed and one.has_bias:
            made = self._made(made.size, [made], lambda gradient: gradient)
        return made

    def _base_back(self, name: str, gradient: list[Array]) -> list[Array]:
        dense = self._dense(name)
        found = self._new(self.n * self.model.decoder.linear[name].inputs * self.model.width)
        del dense
        return [found]

    def _dense(self, name: str) -> Array:
        """The weight at full precision, where it is kept packed."""
        return self._new(self.model.decoder.linear[name].weights * self.model.width if self.model.is_packed else 0)

    def _with_update(self, name: str, x: Array, made: Array, rank: int) -> Array:
        """As PEFT adds the update of one adapter."""
        one, is_float = self.model.decoder.linear[name], self.model.width == FLOAT
        cast = None if is_float else self._new(self.n * one.inputs * FLOAT)
        inner = self._new(self.n * rank * FLOAT)
        update = self._new(self.n * one.outputs * FLOAT)
        del inner
        scaled = self._new(update.size)
        del update
        total = self._new(scaled.size)
        del scaled, made
        if not is_float:
            total = self._new(self.n * one.outputs * self.model.width)
        del cast
        return total

    def _add_update(self, name: str, rank: int, n: int) -> None:
        """As `lora` adds the update of some rows in place."""
        one, is_float = self.model.decoder.linear[name], self.model.width == FLOAT
        cast = None if is_float else self._new(n * one.inputs * FLOAT)
        inner = self._new(n * rank * FLOAT)
        del cast
        update = self._new(n * one.outputs * FLOAT)
        del inner
        if not is_float:
            self._new(n * one.outputs * self.model.width)
        del update

    def _trained(self, name: str, x: Array, rank: int) -> Array:
        """As `lora` runs the student's layer: it keeps x and A x."""
        one, is_float = self.model.decoder.linear[name], self.model.width == FLOAT
        made = self._base(name, x, records=False)
        cast = None if is_float else self._new(self.n * one.inputs * FLOAT)
        inner = self._new(self.n * rank * FLOAT)
        del cast
        if not is_float:
            update = self._new(self.n * one.outputs * FLOAT)
            self._new(made.size)
            del update
        kept = (x.storage, inner.storage)
        return self.ledger.recorded(made, [x], partial(self._trained_back, kept, name, rank, x.step is not None))

    def _trained_back(self, kept: tuple[Storage, ...], name: str, rank: int, is_wanted: bool, gradient: list[Array]) -> list[Array]:
        one, is_float = self.model.decoder.linear[name], self.model.width == FLOAT
        full = gradient[0] if is_float else self._new(self.n * one.outputs * FLOAT)
        inner = self._new(self.n * rank * FLOAT)
        self.ledger.gradients.append(self._new(rank * one.outputs * FLOAT))
        cast = None if is_float else self._new(self.n * one.inputs * FLOAT)
        self.ledger.gradients.append(self._new(rank * one.inputs * FLOAT))
        del cast
        if not is_wanted:
            return []
        found = self._base_back(name, gradient)
        if not is_float:
            update = self._new(self.n * one.inputs * FLOAT)
            self._new(found[0].size)
            del update
        del inner, full
        return found
