"""A server on loopback that answers as vLLM's does to requests for prompt log-probs and for responses, and takes adapters while it runs;
and the ways in which such a server fails.

It serves the embedded base and adapters on it, by PEFT's own models. The forms are those of vLLM's source: CompletionRequest,
CompletionResponse, ModelCard, LoadLoRAAdapterRequest, ErrorResponse, and the messages of its checks.
"""

import json
import threading
import time
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

MAX_MODEL_LEN = 512
STANDARD = {"model", "prompt", "max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop", "logprobs"}


class Models:
    """The base and its adapters: the log-probs of every token after each token, by the name under which a model is served."""

    def __init__(self, base, adapters):
        self.base = str(base)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        (first, path), *others = adapters.items()
        self.peft = PeftModel.from_pretrained(model, path, adapter_name=first)
        for name, path in others:
            self.peft.load_adapter(path, name)
        self.peft.eval()
        self.names, self._lock = ("base", *adapters), threading.Lock()

    @torch.no_grad()
    def log_probs(self, name, ids):
        """(T, V)"""
        with self._lock, self._on(name):
            return self.peft(torch.tensor([ids])).logits[0].log_softmax(-1)

    def _on(self, name):
        if name == "base":
            return self.peft.disable_adapter()
        self.peft.set_adapter(name)
        return nullcontext()

    def load(self, name, path):
        """An adapter while the server runs."""
        with self._lock:
            self.peft.load_adapter(path, name)

    def unload(self, name):
        with self._lock:
            self.peft.delete_adapter(name)

    @torch.no_grad()
    def generate(self, name, ids, limit, seed, options):
        """Sampled token by token: the ids, the log-prob of each before any cut, and how it ended. `options` are the request's."""
        generator = torch.Generator().manual_seed(seed)
        ends = [*options.get("stop_token_ids", []), *([] if options.get("ignore_eos") else [self.tokenizer.eos_token_id])]
        with self._lock, self._on(name):
            past, following, written, found = DynamicCache(config=self.peft.get_base_model().config), list(ids), [], []
            while len(written) < limit:
                logits = self.peft(torch.tensor([following]), past_key_values=past, use_cache=True).logits[0, -1]
                log_probs = logits.log_softmax(-1)
                for token_id, bias in (options.get("logit_bias") or {}).items():
                    logits[int(token_id)] += bias
                logits = logits / options["temperature"]
                if options.get("top_k", -1) > 0:
                    logits = logits.where(logits >= logits.topk(options["top_k"]).values[-1], -torch.inf)
                following = torch.multinomial(logits.softmax(-1), 1, generator=generator).tolist()
                written += following
                found.append(float(log_probs[following[0]]))
                if following[0] in ends:
                    return written, found, "stop"
        return written, found, "length"


class RemoteServer:
    """Started when it is made. `stop()` closes its port and drops what is open; `start()` opens the same port again.

    Faults: `errors` are (status, headers, message) that the next requests get instead of an answer. `die_after` is the number of
    completions after which it stops by itself. `stall` is seconds of silence before each answer. `change(prompt_logprobs)` may damage
    those of an answer. `log_probs` is "yes", "ignored" (an API that does not know the field) or "refused" (one that says so).
    `vocabulary` maps an id to the one that the server takes it for. `key`, where there is one, must be sent. `standard` is a server that
    refuses fields beyond those of OpenAI's completions. `defaults` are what a request gets for fields that it leaves out, as a model's
    generation_config.json has them.

    Of adapters that come while it runs: `takes_adapters` is False for a server that was started without them, `max_lora_rank` is the room
    that it has, `sees` says whether a path is on its disk. One that was stopped has forgotten them. `answer(choice)` may damage an answer.
    """

    def __init__(self, models):
        self.models, self.port = models, 0
        self.served = list(models.names)
        self.requests, self.at_once, self.most_at_once = [], 0, 0
        self.errors, self.die_after, self.stall, self.key = [], None, 0.0, None
        self.log_probs, self.max_logprobs, self.change = "yes", 20, lambda found: found
        self.vocabulary = lambda token_id: token_id
        self.standard, self.defaults = False, {"temperature": 0.01, "top_k": 1}
        self.takes_adapters, self.max_lora_rank, self.sees, self.answer = True, 16, lambda path: True, lambda choice: choice
        self.loaded, self.ever_loaded = {}, []  # name: path, of those that came while it runs
        self.lock = threading.Lock()
        self.start()

    def start(self):
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.daemon_threads, self.http.remote, self.port, self.is_up = True, self, self.http.server_port, True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self):
        self.is_up = False
        self.http.shutdown()
        self.http.server_close()
        for name in list(self.loaded):
            self.unload(name)

    def come_back(self):
        """Start again as soon as it has stopped."""

        def wait():
            while self.is_up:
                time.sleep(0.05)
            time.sleep(0.5)
            self.start()

        threading.Thread(target=wait, daemon=True).start()

    def load(self, request):
        """What _error takes, where the adapter is not taken."""
        name, path = request["lora_name"], Path(request["lora_path"])
        if name in self.loaded:
            return (
                400,
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set",
                "InvalidUserInput",
            )
        if not self.sees(path):
            return 404, f"Loading lora {name} failed: No adapter found for {path}", "NotFoundError"
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            return 500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.", "InternalServerError"
        self.models.load(name, path)
        self.loaded[name] = path
        self.ever_loaded.append(name)
        return None

    def unload(self, name):
        """What _error takes, where there is no such adapter."""
        if name not in self.loaded:
            return 404, f"The lora adapter '{name}' cannot be found.", "NotFoundError"
        self.models.unload(name)
        del self.loaded[name]
        return None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def cards(self):
        """What /v1/models says. Only the base's card has a length."""
        card = {"object": "model", "created": 0, "owned_by": "vllm"}
        return [
            {**card, "id": name, "root": self.models.base, "parent": None, "max_model_len": MAX_MODEL_LEN}
            if name == "base"
            else {**card, "id": name, "root": name, "parent": "base", "max_model_len": None}
            for name in (*self.served, *self.loaded)
        ]

    def prompt_logprobs(self, name, ids, k):
        """As vLLM makes it: the token that was sent first, with its rank in the vocabulary, then the k likeliest."""
        meant = [self.vocabulary(token_id) for token_id in ids]
        back = {self.vocabulary(token_id): token_id for token_id in range(len(self.models.tokenizer))}
        found = [None]
        for log_probs, sent in zip(self.models.log_probs(name, meant)[:-1], meant[1:], strict=True):
            top = log_probs.topk(k)
            ranked = {sent: int((log_probs >= log_probs[sent]).sum())} | {int(i): n for n, i in enumerate(top.indices, 1)}
            found.append(
                {
                    str(back[i]): {"logprob": float(log_probs[i]), "rank": rank, "decoded_token": self.models.tokenizer.decode([i])}
                    for i, rank in ranked.items()
                }
            )
        return self.change(found)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle(self):
        with suppress(ConnectionError):  # who asked has gone
            super().handle()

    def do_GET(self):
        if self._may_answer():
            self._json({"object": "list", "data": self.server.remote.cards()})

    def do_POST(self):
        remote = self.server.remote
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._may_answer():
            return
        if self.path.endswith("_lora_adapter"):
            self._adapter(request)
            return
        with remote.lock:
            remote.requests.append(request)
            remote.at_once += 1
            remote.most_at_once = max(remote.most_at_once, remote.at_once)
            error = remote.errors.pop(0) if remote.errors else None
            if remote.die_after is not None and len(remote.requests) > remote.die_after:
                remote.is_up, remote.die_after = False, None
                threading.Thread(target=remote.stop, daemon=True).start()
        try:
            time.sleep(remote.stall)
            if error:
                self._error(error[0], error[2], "InternalServerError", headers=error[1])
            elif remote.is_up:
                self._complete(request)
            else:
                self.close_connection = True
        finally:
            with remote.lock:
                remote.at_once -= 1

    def _adapter(self, request):
        remote = self.server.remote
        if not remote.takes_adapters:
            self._json({"detail": "Not Found"}, 404)
            return
        with remote.lock:
            problem = remote.load(request) if self.path.endswith("/load_lora_adapter") else remote.unload(request["lora_name"])
        if problem:
            self._error(*problem)
        else:
            self._send(f"Success: LoRA adapter '{request['lora_name']}' added successfully.".encode(), "text/plain")

    def _may_answer(self):
        remote = self.server.remote
        if not remote.is_up:
            self.close_connection = True
            return False
        if remote.key and self.headers.get("Authorization") != f"Bearer {remote.key}":
            self._json({"error": "Unauthorized", "sent": self.headers.get("Authorization")}, 401)
            return False
        return True

    def _complete(self, request):
        remote, ids, k = self.server.remote, request["prompt"], request.get("prompt_logprobs")
        if refusal := self._refusal(request, ids, k):
            self._error(*refusal)
            return
        options = ({} if remote.standard else remote.defaults) | {name: value for name, value in request.items() if value is not None}
        written, found, ending = remote.models.generate(request["model"], ids, request["max_tokens"], request.get("seed", 0), options)
        text, count = remote.models.tokenizer.decode(written, skip_special_tokens=True), len(written)
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": ending, "stop_reason": None, "token_ids": None}
        if request.get("logprobs") is not None:
            choice["logprobs"] = {"token_logprobs": found, "tokens": [remote.models.tokenizer.decode([i]) for i in written]}
        if request.get("return_token_ids"):
            choice |= {"token_ids": written, "prompt_token_ids": ids}
        choice = remote.answer(choice)
        if k is not None and remote.log_probs == "yes":
            choice |= {"prompt_logprobs": remote.prompt_logprobs(request["model"], ids, k), "prompt_token_ids": None}
        usage = {"prompt_tokens": len(ids), "total_tokens": len(ids) + count, "completion_tokens": count, "prompt_tokens_details": None}
        self._json(
            {"id": "cmpl-1", "object": "text_completion", "created": 0, "model": request["model"], "choices": [choice], "usage": usage}
        )

    def _refusal(self, request, ids, k):
        """What _error takes, where the request is one that the server does not answer."""
        remote, problems = self.server.remote, []
        if remote.standard and (others := sorted(set(request) - STANDARD)):
            problems.append((400, f"Unrecognized request argument supplied: {others[0]}", "invalid_request_error"))
        if request["model"] not in (*remote.served, *remote.loaded):
            problems.append((404, f"The model `{request['model']}` does not exist.", "NotFoundError", "model"))
        if remote.log_probs == "refused" and k is not None:
            problems.append((400, "Unrecognized request argument supplied: prompt_logprobs", "invalid_request_error"))
        if k is not None and k > remote.max_logprobs:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {remote.max_logprobs}"
            problems.append((400, f"{message} (parameter=prompt_logprobs, value={k})", "BadRequestError", "prompt_logprobs"))
        if max(ids) >= len(remote.models.tokenizer):
            problems.append((400, f"Token id {max(ids)} is out of vocabulary", "BadRequestError"))
        if len(ids) + request["max_tokens"] > MAX_MODEL_LEN:
            problems.append((400, f"This model's maximum context length is {MAX_MODEL_LEN} tokens.", "BadRequestError"))
        return problems[0] if problems else None

    def _error(self, status, message, kind, param=None, headers=()):
        self._json({"error": {"message": message, "type": kind, "param": param, "code": status}}, status, headers)

    def _json(self, content, status=200, headers=()):
        self._send(json.dumps(content).encode(), "application/json", status, headers)

    def _send(self, body, kind, status=200, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
