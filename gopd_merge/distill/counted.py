"""How much memory the phases of a step take with a plain decoder, counted from its shape alone: no torch, and milliseconds.

`footprint` runs the real code without numbers, for any model, and takes seconds. Here that code is retold for the decoders that most bases
are; a test holds the two together, and both to what real steps allocate.
"""

from collections.abc import Mapping, Sequence

from gopd_merge.distill.counted_pass import FLOAT, Adapted, Model, Pass, Ranks
from gopd_merge.distill.ledger import Array, Ledger, go_back
from gopd_merge.distill.sizes import CACHED_BLOCK, LARGE_BLOCK, PROBED_TOKENS, Sizes, nf4_bytes
from gopd_merge.experts.decoder import Decoder
from gopd_merge.experts.intake import Expert
from gopd_merge.experts.patterns import has_patterns

INTEGER = 8  # bytes
# Arrays of a block of logits that stand at once while a loss is made.
OF_LOSS = {"full": 5, "sampled": 3, "topk": 6, "forward": 4, "cross_entropy": 3}
HIDDEN = "hidden"  # the estimator without logits


class Counted:
    """A base with all experts and a student on it, as sizes. All figures are bytes."""

    def __init__(self, decoder: Decoder, experts: Sequence[Expert], rank: int, targets: Sequence[str], quantize: str, device: str) -> None:
        """With rank 0 there is no student on it. The experts and targets must pass `is_countable`."""
        width = 4 if device == "cpu" else 2 if quantize == "nf4" else decoder.value_bytes  # as `load_dtypes` has it
        self._model = Model(decoder, width, quantize == "nf4")
        self._at_once = CACHED_BLOCK if device == "cpu" else LARGE_BLOCK
        self._experts = [_ranks(decoder, e) for e in experts]
        self._student: Ranks = [dict.fromkeys(targets, rank)] * decoder.layers if rank else []
        packed = self._model.is_packed
        block_weights = decoder.block_weights
        self.parameters = decoder.parameters
        self.weights = width * decoder.parameters + FLOAT * decoder.head_size  # and rotary frequencies, twice one of each pair
        saved = decoder.layers * sum(width * one.weights - nf4_bytes(one.weights) for one in decoder.linear.values()) if packed else 0
        self.base = self.weights - saved
        block = (block_weights // 2 if packed else width * block_weights) + width * decoder.block_vectors
        self.layers = [block] * decoder.layers
        self.experts = sum(_adapter_bytes(decoder, ranks) for ranks in self._experts)
        self.student = _adapter_bytes(decoder, self._student)

    def rollout(self, sizes: Sizes) -> int:
        """The prompts' pass, and the last token's pass with the keys and values of all others kept."""
        by = self._student or (self._experts[0] if self._experts else None)
        return self._longest(sizes, sizes.batch_size, Adapted(all_rows=by))

    def mixture(self, sizes: Sizes) -> int:
        """The same where a target is sampled: expert and base run every prompt side by side, and their logits are mixed."""
        return self._longest(sizes, 2 * sizes.batch_size, Adapted(by_rows=((self._experts[0], sizes.batch_size),)), mixed=True)

    def _longest(self, sizes: Sizes, rows: int, adapted: Adapted, mixed: bool = False) -> int:
        peaks = []
        for tokens, keys in ((sizes.prompt_tokens, sizes.prompt_tokens), (1, sizes.prompt_tokens + sizes.max_new_tokens)):
            ledger = Ledger()
            decoder, width = self._model.decoder, self._model.width
            past = rows * (keys - tokens) * decoder.key_heads * decoder.head_size * width
            cache = [[ledger.new(past), ledger.new(past)] for _ in range(decoder.layers)]
            given = [ledger.new(INTEGER * rows * keys), ledger.new(INTEGER * rows * tokens), ledger.new(INTEGER * rows * keys)]
            hidden = Pass(ledger, self._model, rows, tokens, adapted).run(cache, keys)
            self._drawn(ledger, rows, hidden, mixed)
            del given
            peaks.append(ledger.peak)
        return max(peaks)

    def _drawn(self, ledger: Ledger, rows: int, hidden: Array, mixed: bool) -> None:
        """Logits of each row's last token, their copy in float32, and the noise of the draw."""
        vocabulary, width = self._model.decoder.vocabulary, self._model.width
        logits = ledger.new(rows * vocabulary * width)
        if mixed and width != FLOAT:
            head = self._float_head(ledger)
            logits = ledger.new(rows * vocabulary * FLOAT)
            del head
        del hidden
        scores = ledger.new(rows * vocabulary * FLOAT)
        del logits
        if not mixed:
            ledger.new(scores.size)
            return
        mean = ledger.new(scores.size // 2)
        ledger.new(mean.size)
        ledger.new(scores.size)

    def _float_head(self, ledger: Ledger) -> Array:
        """The head in float32, where it is kept in less."""
        decoder = self._model.decoder
        return ledger.new(decoder.vocabulary * decoder.hidden * FLOAT if self._model.width != FLOAT else 0)

    def score(self, sizes: Sizes, apart: bool = False, ratios: bool = False) -> int:
        """Expert and reference of one micro-batch in one pass, beside what earlier micro-batches left.

        `apart`: the hidden states of both roles are kept, not their mixture. `ratios`: both are projected, a chunk at a time.
        """
        ledger, decoder = Ledger(), self._model.decoder
        rows, tokens = sizes.micro_batch_size, sizes.max_new_tokens
        whole, count = sizes.prompt_tokens + tokens, len(self._experts)
        left = ledger.new((2 if apart else 1) * sizes.batch_size * tokens * decoder.hidden * FLOAT)
        head = self._float_head(ledger)
        shares = [(ranks, rows // count + (place < rows % count)) for place, ranks in enumerate(self._experts)]
        together = 2 * rows if count else rows
        ids = ledger.new(INTEGER * together * whole)
        hidden = Pass(ledger, self._model, together, whole, Adapted(by_rows=tuple(shares))).run()
        own = ledger.new(hidden.size // whole * tokens)
        if ratios:
            log_probs = [self._log_probs(ledger, min(sizes.chunk_tokens, together * tokens)) for _ in range(2)]
            stacked = ledger.new(2 * log_probs[0].size)
            ledger.new(stacked.size)
            del log_probs, stacked
        del hidden, ids
        probed = self._logits(ledger, min(rows * PROBED_TOKENS, sizes.chunk_tokens))
        ledger.new(self._block(probed.size))
        del probed
        part = own if self._model.width == FLOAT else ledger.new(rows * tokens * decoder.hidden * FLOAT)
        ledger.new(rows * tokens * decoder.hidden * FLOAT)
        del part, own, left, head
        return ledger.peak

    def _logits(self, ledger: Ledger, count: int) -> Array:
        """Of so many tokens, in float32. The head in float32 is there."""
        states = ledger.new(count * self._model.decoder.hidden * FLOAT if self._model.width != FLOAT else 0)
        logits = ledger.new(count * self._model.decoder.vocabulary * FLOAT)
        del states
        return logits

    def _log_probs(self, ledger: Ledger, count: int) -> Array:
        logits = self._logits(ledger, count)
        return ledger.new(logits.size)

    def _block(self, size: int) -> int:
        """Bytes of the logits that are worked on at once, of so many."""
        row = self._model.decoder.vocabulary * FLOAT
        return min(size, row * max(1, self._at_once // row))

    def update(self, sizes: Sizes, estimator: str, top_k: int = 64, apart: bool = False, recompute: bool = False) -> int:
        """Forward and backward of one micro-batch, the gradients of the student included.

        `apart`: the target is projected once for each role. `recompute`: only the layers' inputs are kept for the way back.
        """
        ledger, decoder = Ledger(), self._model.decoder
        rows, tokens = sizes.micro_batch_size, sizes.max_new_tokens
        whole, count = sizes.prompt_tokens + tokens, rows * tokens
        target = ledger.new(sizes.batch_size * tokens * decoder.hidden * FLOAT)
        ids = ledger.new(INTEGER * rows * whole)
        hidden = self._states(
            ledger, Pass(ledger, self._model, rows, whole, Adapted(trained=self._student)).run(recompute=recompute), count
        )
        if estimator == HIDDEN:
            gradient = self._of_distance(ledger, count)
        else:
            gradient = self._of_chunk(ledger, min(count, sizes.chunk_tokens), count, estimator, apart)
        go_back(ledger, hidden.step, [gradient.pop(0)])
        del target, ids, gradient
        return ledger.peak

    def _states(self, ledger: Ledger, hidden: Array, count: int) -> Array:
        """The hidden states of response tokens, out of all."""
        whole = hidden.size

        def back(gradient: list[Array]) -> list[Array]:
            zeros = ledger.new(whole)
            found = ledger.new(whole)
            del zeros
            return [found]

        return ledger.recorded(ledger.new(count * self._model.decoder.hidden * self._model.width), [hidden], back)

    def _of_distance(self, ledger: Ledger, count: int) -> list[Array]:
        """The gradient of the distance of hidden states."""
        size = count * self._model.decoder.hidden
        spread = [ledger.new(size * FLOAT) for _ in range(4)]
        found = ledger.new(size * self._model.width)
        del spread
        return [found]

    def _of_chunk(self, ledger: Ledger, chunk: int, count: int, estimator: str, apart: bool) -> list[Array]:
        """The gradient of a chunk's loss with respect to its hidden states; and what else stands until it has gone back."""
        decoder, width = self._model.decoder, self._model.width
        rest = ledger.new((count - chunk) * decoder.hidden * FLOAT)  # of the other chunks
        gradient = ledger.new(chunk * decoder.hidden * width)
        head = self._float_head(ledger)
        states = ledger.new(chunk * decoder.hidden * FLOAT if width != FLOAT else 0)
        logits = ledger.new(chunk * decoder.vocabulary * FLOAT)
        log_q = ledger.new(logits.size)
        if apart:
            other = ledger.new(logits.size)
            log_q = ledger.new(logits.size)
            del other
        block = [ledger.new(self._block(logits.size)) for _ in range(OF_LOSS[estimator])]
        del block
        found = ledger.new(chunk * decoder.hidden * FLOAT)
        squares = ledger.new(found.size)
        del logits, log_q, states, squares
        return [gradient, found, head, rest]


def is_countable(decoder: Decoder, experts: Sequence[Expert], targets: Sequence[str]) -> bool:
    """Whether nothing but the linear layers of the decoder's blocks is adapted, by plain LoRAs that name their layers."""
    places = [_place(module) for e in experts for module in e.modules]
    return (
        all(e.is_plain and not has_patterns(e.settings) for e in experts)
        and all(number is not None and number < decoder.layers and name in decoder.linear for number, name in places)
        and set(targets) <= decoder.linear.keys()
    )


def _place(module: str) -> tuple[int | None, str]:
    """The number of the block of a module, and the last part of its name."""
    parts = module.split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    return (numbers[0] if len(numbers) == 1 else None), parts[-1]


def _ranks(decoder: Decoder, expert: Expert) -> Ranks:
    ranks: list[dict[str, int]] = [{} for _ in range(decoder.layers)]
    for module, (rank, _, _) in expert.modules.items():
        number, name = _place(module)
        ranks[number or 0][name] = rank
    return ranks


def _adapter_bytes(decoder: Decoder, ranks: Sequence[Mapping[str, int]]) -> int:
    of_all = [(rank, decoder.linear[name]) for layer in ranks for name, rank in layer.items()]
    return FLOAT * sum(rank * (one.inputs + one.outputs) for rank, one in of_all)
